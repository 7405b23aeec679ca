"""The official client, pointed at a service on a real socket."""

from collections.abc import AsyncIterator

import openai
import pytest

from tests.api.conftest import Service


def official_client(service: Service, key: str = "any") -> openai.AsyncOpenAI:
    """As its documentation has it made; it never tries again, so that a test sees the first answer."""
    return openai.AsyncOpenAI(base_url=f"{service.running.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
async def client(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with official_client(service) as made:
        yield made


@pytest.fixture
async def model(client: openai.AsyncOpenAI) -> str:
    """The name of the one model, found as a user interface finds it."""
    (only,) = (await client.models.list()).data
    return only.id
