"""`sidecar sidecars`: the live sidecars, and the registry revision of each."""

from __future__ import annotations

import typer

from sidecar.cli.admin_command import ADMINISTRATION, Invocation, command
from sidecar.cli.tables import Column, print_table


def add_to(app: typer.Typer) -> None:
    """Register the command on *app*."""

    @command(app, "sidecars", panel=ADMINISTRATION)
    def sidecars(call: Invocation) -> None:
        """List the live sidecars, and whether each has applied the latest change."""
        from sidecar.cli.times import shown

        listing = call.get("sidecars")
        if call.is_json:
            call.print_json(listing)
            return
        rows = [
            (
                item["id"],
                "up to date" if item["is_up_to_date"] else "behind",
                item["revision"],
                shown(item["seen_at"]),
            )
            for item in listing["items"]
        ]
        columns = (Column("sidecar"), Column("registry"), Column("revision"), Column("seen"))
        print_table(columns, rows, "no live sidecar: none has sent a heartbeat within 10 s")
