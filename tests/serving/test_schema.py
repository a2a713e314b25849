"""Requests generated from the OpenAPI description cause no server errors."""

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

EXAMPLES = int(os.environ.get("TUNESMITH_API_EXAMPLES", "12"))


@pytest.mark.slow
def test_no_generated_request_causes_a_server_error(api):
    schema = schemathesis.openapi.from_url(f"{api.url[:-3]}/openapi.json")
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

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
            case.call_and_validate(checks=[not_a_server_error], timeout=300)

        call()
    assert tried > 100
