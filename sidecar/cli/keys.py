"""`sidecar keys`."""

from __future__ import annotations

from typing import Annotated

import typer

from sidecar.cli.exits import report_errors
from sidecar.cli.options import JsonOption
from sidecar.domain.api_keys import PREFIX

app = typer.Typer(no_args_is_help=True, help="API keys.")


@app.command()
def new(
    json: JsonOption = False,
    prefix: Annotated[str, typer.Option("--prefix", metavar="TEXT", help="The prefix of the key.")] = PREFIX,
) -> None:
    """
    Generate an API key and print it with its lines for the registry file.

    The key is shown only once; the registry holds only its digest.
    """
    from sidecar.domain.api_keys import generate_api_key

    with report_errors():
        key = generate_api_key(prefix)
    if json:
        import json as encoder

        credential = {"id": key.credential_id, "digest": key.digest}
        typer.echo(encoder.dumps({"api_key": key.api_key, "credential": credential}))
        return
    typer.echo(
        f"""API key, shown only once; send it to the integration's operator over a secure channel:

  {key.api_key}

Add to the registry file, under 'credentials:' of the integration:

  - id: "{key.credential_id}"
    digest: {key.digest}"""
    )
