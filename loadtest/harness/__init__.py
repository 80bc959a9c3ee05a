"""The load-test harness: scenarios, servers, the oracle and reports; `python -m loadtest` is its command."""
