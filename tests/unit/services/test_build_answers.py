"""Both builds give the same answers, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from tests.ext_authz_corpus import answers
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[3]


def test_answers__are_those_of_the_pure_build() -> None:
    """
    This build, whichever it is, answers the corpus as the sources do in another process.

    On the pure build this proves that answers do not depend on the process, such as on its hash seed.
    """
    ours = list(answers())
    titles = Counter(
        CheckResponse.FromString(answer).denied_response.status.code for answer in ours if len(answer) > 60
    )
    assert {0, 403, 429} <= set(titles)  # the corpus has answers of each kind
    # The working directory comes first on the path of -m, so its sources hide compiled modules.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    printed = subprocess.run(
        [sys.executable, "-m", "tests.ext_authz_corpus"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE_S,
    ).stdout.splitlines()  # fmt: skip
    assert printed[0] == "pure"
    assert printed[1:] == [answer.hex() for answer in ours]
