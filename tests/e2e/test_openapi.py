"""What the OpenAPI document says is so: schemathesis asks what it allows, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.e2e.gateway_process import GatewayProcess, gateway_process
from tests.fakes import tiny_repository

schemathesis.checks.load_all_checks()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A running gateway."""
    repository = tiny_repository(tmp_path_factory.mktemp("published") / "repository")
    with gateway_process(repository.root) as process:
        yield process


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.timeout(300)
def test_no_request_is_answered_otherwise_than_the_document_says(
    gateway: GatewayProcess, mode: GenerationMode
) -> None:
    """Statuses, types and bodies are the documented ones; of the 5xx only 503, with Retry-After.

    What the document allows may be refused all the same: an image may be broken, a point not be published.
    """
    document = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    asked = 0
    for found in document.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not list(operation.iter_parameters()):
            continue

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=100,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: schemathesis.Case[Any]) -> None:  # Any: the response is not looked at by type
            nonlocal asked
            asked += 1
            response = case.call(timeout=30)
            busy = response.status_code == 503 and "Retry-After" in response.headers
            assert response.status_code < 500 or busy, case.as_curl_command()
            case.validate_response(response, excluded_checks=[not_a_server_error, positive_data_acceptance])

        ask()
    assert asked >= 100
    assert gateway.alive
