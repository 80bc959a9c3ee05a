"""`sidecar serve`: one process, or a supervisor above several."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.process.config import Config
from sidecar.process.config_checks import is_shared, refuse_open_admin, refuse_unshared_store
from sidecar.process.listeners import Served
from sidecar.process.operating_system import READY, notify_systemd, worker_count
from sidecar.process.run import Process, Serving, run


def serve(
    config: Config, on_serving: Serving | None = None, reload: Callable[[], Config] | None = None
) -> int:
    """
    Run a sidecar, or a supervisor with workers, until a stop signal; return the exit code.

    Several workers need a supervisor. So do the admin API, which runs in the supervisor's process, and the
    decision log, whose writer is a separate process.

    Args:
        config: what to serve.
        on_serving: called once it serves.
        reload: reads the configuration again, for a rolling restart of the workers.

    Raises:
        FileFaultsError: the rules or the registry hold mistakes, several workers have an embedded store, or
            the admin listener is open to a network without TLS.
        ListenError: an endpoint cannot be bound or its TLS files cannot be used.
        StartError: a worker ended before it served, or this process was not ready to take over in time.
    """

    def report_serving(served: Served) -> None:
        notify_systemd(READY)
        if on_serving is not None:
            on_serving(served)

    count = worker_count(config.settings.workers)
    if count == 1 and not config.serves_admin_api and not config.settings.decision_log.is_on:
        return run(
            config,
            Metrics(TABLE),
            lambda loaded, sidecar, logs: Process(loaded, sidecar, logs, report_serving),
        )
    from sidecar.process.supervisor.supervisor import SupervisorPlan, supervise

    def read() -> Config:
        fresh = config if reload is None else reload()
        refuse_unshared_store(fresh, count)
        return fresh

    refuse_unshared_store(config, count)
    refuse_open_admin(config)
    return supervise(SupervisorPlan(config, count, read, rolls=is_shared(config)), report_serving)
