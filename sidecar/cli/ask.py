"""`sidecar ask`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.cli import options as o
from sidecar.cli.exits import EXIT_DENIED, EXIT_OK, EXIT_USAGE, CommandError, report_errors

if TYPE_CHECKING:
    from sidecar.cli.check_client import ClientTls
    from sidecar.services.ext_authz_client import Checked

COUNT_MAX = 10_000
LOOPBACK = "127.0.0.1"


def ask(
    method: o.MethodArgument,
    path: o.PathArgument,
    target: Annotated[
        str,
        typer.Option("--target", "-t", metavar="ADDRESS", help="'host:port' or 'unix:/path' of the sidecar."),
    ] = "127.0.0.1:9191",
    key: o.KeyOption = None,
    ip: o.IpOption = None,
    peer: o.PeerOption = "",
    config: o.ConfigOption = None,
    scope: o.ScopeOption = "",
    header: o.HeaderOption = None,
    count: Annotated[
        int,
        typer.Option(
            "--count", "-n", min=1, max=COUNT_MAX, help="Number of requests to send, one after another."
        ),
    ] = 1,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="PEM file of the CA to trust; turns TLS on.")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option("--cert", metavar="FILE", help="PEM file of a client certificate.")
    ] = None,
    cert_key: Annotated[
        Path | None, typer.Option("--cert-key", metavar="FILE", help="PEM file of its key.")
    ] = None,
    json: o.JsonOption = False,
) -> None:
    """
    Ask a running sidecar about one request, as Envoy would.

    This is a real request and takes a token. Exits with 0 if the last request is allowed, with 3 if it
    is denied, with 1 if the sidecar does not answer.

    With --ip the request carries the address as 'client_ip' of the configuration expects it: pass the
    configuration of the sidecar (--config). Without --ip and --peer the peer is 127.0.0.1.
    """
    with report_errors():
        from sidecar.cli.check_client import Asker, AskError
        from sidecar.services.ext_authz_client import check_request

        headers = o.request_headers(header, key, "x-api-key")
        caller = _as_client(ip, peer, config, headers) if ip is not None else peer or LOOPBACK
        request = check_request(method, path, headers, caller, scope)
        try:
            with Asker(target, _tls(ca, cert, cert_key)) as asker:
                for _ in range(count):
                    checked = asker.ask(request)
                    _print(checked, json, brief=count > 1)
        except AskError as error:
            raise CommandError(str(error)) from None
    raise typer.Exit(EXIT_OK if checked.is_allowed else EXIT_DENIED)


def _as_client(ip: str, peer: str, config: Path | None, headers: dict[str, str]) -> str:
    """
    Add the headers that make *ip* the client's address; return the address that connects to the proxy.

    Raises:
        CommandError: *ip* is not an address, or contradicts another option.
        FileFaultsError: the configuration holds mistakes.
    """
    from sidecar.domain.cidr import AddressError, format_address, parse_address
    from sidecar.process.config import load_config

    o.check_addresses(ip, peer)
    try:
        parse_address(ip)
    except AddressError as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    rule = load_config(config).settings.client_ip
    if rule.header is None:
        return ip
    if rule.header in headers:
        raise CommandError(
            f"--ip sets the header {rule.header}, which --header sets, too: use only one of them", EXIT_USAGE
        )
    headers[rule.header] = ip
    return format_address(rule.trusted_proxies[0].network) if rule.trusted_proxies else LOOPBACK


def _tls(ca: Path | None, cert: Path | None, key: Path | None) -> ClientTls | None:
    from sidecar.cli.check_client import ClientTls

    if (cert is None) != (key is None) or (cert is not None and ca is None):
        raise CommandError("--cert and --cert-key must be given together, and need --ca", EXIT_USAGE)
    return None if ca is None else ClientTls(ca, cert, key)


def _print(checked: Checked, as_json: bool, brief: bool) -> None:
    import json

    if as_json:
        typer.echo(json.dumps(checked._asdict()))
        return
    headers = dict(checked.client_headers)
    left = f"  {headers['x-ratelimit-remaining']} left" if "x-ratelimit-remaining" in headers else ""
    wait = f"  retry in {headers['retry-after']} s" if "retry-after" in headers else ""
    word = "allowed" if checked.is_allowed else "denied "
    typer.echo(f"{word}  {checked.status}  {checked.reason}{left}{wait}  {checked.decision_id}")
    if brief:
        return
    for name, value in checked.client_headers:
        typer.echo(f"  {name}: {value}")
    for name, value in checked.upstream_headers:
        typer.echo(f"  {name}: {value}  (to the upstream)")
    if checked.body:
        typer.echo(json.dumps(json.loads(checked.body), indent=2))
