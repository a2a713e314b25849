"""What a machine can think of, by our own description of the API, meets no fault of the server."""

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

EXAMPLES = int(os.environ.get("TUNESMITH_API_EXAMPLES", "12"))


@pytest.mark.slow
def test_no_request_makes_the_server_fail(api):
    schema = schemathesis.openapi.from_url(f"{api.url[:-3]}/openapi.json")
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def call(case):
            nonlocal tried
            tried += 1
            case.call_and_validate(checks=[not_a_server_error], timeout=30)

        call()
    assert tried > 100
