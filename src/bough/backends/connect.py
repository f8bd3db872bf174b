"""From an address to a backend: the key, the model's name, the tokenizer, and what the endpoint offers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from bough.core import EndpointError, InvalidInput
from bough.models import Tokenizer, load_tokenizer
from bough.models.hub import TOKENIZER_FILES, resolve

from .call import Caller
from .client import Client, Refused
from .endpoint import Endpoint
from .gate import Price, Statistics
from .loop import Loop
from .probe import probe
from .route import Route

# What an endpoint was found to offer, by its address, the model and the tokenizer.
_known: dict[tuple[str, str, str], tuple[Route, ...]] = {}


def is_address(source: object) -> bool:
    """Whether this is the address of something rather than a name or a folder."""
    return isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def connect(
    url: str,
    *,
    model: str | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    api_key: str | None = None,
    context: int | None = None,
    max_tokens: int = 2048,
    concurrency: int = 16,
    price: Price | tuple[float, float] | None = None,
    spending_limit: float | None = None,
    timeout: float = 120.0,
    retries: int = 4,
) -> Endpoint:
    """A backend that executes branches on an OpenAI-compatible endpoint.

    The first time that a model of an address is used, about a dozen requests of a few tokens find out what it offers.

    Args:
        url: of the API, such as "http://host:8000/v1"; "#name" at its end names the model.
        model: its name there; default, the one that the endpoint serves, if it is one.
        tokenizer: the model's, as a folder, a Hub id, or loaded. With it, branches are token ids where the endpoint
            takes them, chats are formatted here, and the end of a text can be scored. Its weights are not downloaded.
        api_key: default, what BOUGH_API_KEY is set to; at api.openai.com and the host of OPENAI_BASE_URL also
            OPENAI_API_KEY, which no other host is sent.
        context: the most tokens of a branch, prompt included; default, what the endpoint says of the model, if it
            does.
        max_tokens: the length of a draw that names no limit itself.
        concurrency: requests at once.
        price: per token sent and per token generated, in any currency.
        spending_limit: what all requests of this backend may cost; a request that might exceed it is not made.
        timeout: seconds without a byte after which a request is given up, and made again.
        retries: how often.

    Raises:
        InvalidInput: an argument is out of range, or the endpoint does not serve that model.
        EndpointError: the endpoint cannot be reached, refuses the key, or is no OpenAI-compatible API.
        CheckpointError: the tokenizer cannot be loaded.
    """
    for name, value in {"context": context, "max_tokens": max_tokens, "concurrency": concurrency}.items():
        if value is not None and value < 1:
            raise InvalidInput(f"{name}={value} must be at least 1; leave it out for the default")
    if not timeout > 0 or retries < 0:
        raise InvalidInput(f"timeout={timeout} must be above 0 and retries={retries} at least 0")
    cost = Price(*price) if isinstance(price, tuple) else price
    if spending_limit is not None and (cost is None or not spending_limit > 0):
        raise InvalidInput(
            f"spending_limit={spending_limit} must be above 0, and needs price=(per prompt token, per token)"
        )
    address, named = _address(url)
    if named is not None and model is not None and named != model:
        raise InvalidInput(f"the address names the model {named!r} and model= {model!r}; give one of them")
    own, mark = _tokenizer(tokenizer)
    statistics, loop = Statistics(), Loop()
    try:

        async def begin() -> tuple[Client, str, tuple[Route, ...], int | None]:
            client = Client(
                address, _key(address, api_key), timeout=timeout, retries=retries, connections=concurrency
            )
            loop.at_end(client.close)
            name, limit = await _model(client, model or named)
            key = (client.url, name, mark)
            if key not in _known:
                _known[key] = await _routes(Caller(client, name, own, statistics))
            return client, name, _known[key], limit

        client, name, routes, limit = loop.submit(begin()).result()
    except BaseException:
        loop.stop()
        raise
    return Endpoint(
        client, name, routes, loop, tokenizer=own, context=context or limit, max_tokens=max_tokens,
        concurrency=concurrency, price=cost, spending_limit=spending_limit, statistics=statistics,
    )  # fmt: skip


def _address(url: str) -> tuple[str, str | None]:
    """The address without what is behind the path, and the model that its fragment names."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(
            f"{parts.scheme}://{parts.hostname or ''} is no address of an endpoint; give http(s)://host:port/v1"
        )
    if parts.username is not None or parts.password is not None or parts.query:
        raise InvalidInput(
            f"the address of the endpoint at {parts.hostname} has a password or a query in it, which would be "
            "shown in results; give api_key= or set BOUGH_API_KEY"
        )
    path = re.sub(r"/(chat/completions|completions|models)?/*$", "", parts.path)
    return f"{parts.scheme}://{parts.netloc}{path}", parts.fragment or None


def _key(address: str, given: str | None) -> str | None:
    if given is None:
        given = os.environ.get("BOUGH_API_KEY")
    if given is None:
        # A key for one company is not for whoever answers at another address.
        owners = {"api.openai.com", urlsplit(os.environ.get("OPENAI_BASE_URL", "")).hostname}
        given = os.environ.get("OPENAI_API_KEY") if urlsplit(address).hostname in owners else None
    if given is not None and (not given.isascii() or not given.isprintable() or " " in given):
        raise InvalidInput("the API key has a character that no HTTP header can have; is there a line break in it?")
    return given or None


def _tokenizer(source: str | os.PathLike[str] | Tokenizer | None) -> tuple[Tokenizer | None, str]:
    """The tokenizer and what tells it from others."""
    if source is None:
        return None, ""
    if isinstance(source, Tokenizer):
        return source, f"object {id(source)}"
    folder = resolve(source, files=TOKENIZER_FILES)
    found = load_tokenizer(folder)
    if found is None:
        raise InvalidInput(
            f"tokenizer={os.fspath(source)!r} has no tokenizer.json; give a folder or Hub id that has one"
        )
    return found, str(folder)


async def _model(client: Client, wanted: str | None) -> tuple[str, int | None]:
    """The model's name and its context, from the endpoint's list of models."""
    try:
        served = await _served(client)
    except Refused as error:
        if error.status not in (404, 405, 500, 501):
            raise
        if wanted is None:
            raise InvalidInput(
                f"{client.url} does not list its models; give model=, or the address with #name"
            ) from None
        return wanted, None
    name = _chosen(served, wanted, client.url)
    entry = served[name]
    meta = entry.get("meta")
    slot = meta.get("n_ctx") if isinstance(meta, dict) else None
    sizes = [entry.get("max_model_len"), entry.get("context_length"), entry.get("context_window"), slot]
    return name, next((size for size in sizes if isinstance(size, int) and size > 0), None)


def _chosen(served: Mapping[str, Mapping[str, Any]], wanted: str | None, url: str) -> str:
    """The name of the model that is wanted, which may leave out its owner; by default, the only one of its own.

    What is made of another model (an adapter in vLLM, a search in bough's own server) names that as its parent.
    """
    if wanted in served:
        assert wanted is not None
        return wanted
    own = [name for name, entry in served.items() if not entry.get("parent")]
    fitting = own if wanted is None else [name for name in served if name.rsplit("/", 1)[-1] == wanted]
    if len(fitting) == 1:
        return fitting[0]
    if wanted is None:
        raise InvalidInput(
            f"{url} serves {len(served)} models: give model=, or the address with #name, of {_names(served)}"
        )
    raise InvalidInput(f"{url} does not serve {wanted!r}; it has {_names(served)}")


async def _served(client: Client) -> dict[str, dict[str, Any]]:
    """The endpoint's models by name; the address is corrected where its ``/v1`` was left out."""
    try:
        answer = await client.get("models")
    except EndpointError as error:
        if client.url.endswith("/v1") or (isinstance(error, Refused) and error.status not in (404, 405)):
            raise
        plain, client.url = client.url, f"{client.url}/v1"
        try:
            answer = await client.get("models")
        except EndpointError:
            client.url = plain
            raise error from None
    listed = answer.get("data") if isinstance(answer, dict) else answer
    if not isinstance(listed, list):
        raise EndpointError(f"{client.url}/models answered {str(answer)[:200]!r}, which is no list of models")
    return {entry["id"]: entry for entry in listed if isinstance(entry, dict) and isinstance(entry.get("id"), str)}


def _names(served: Iterable[str], most: int = 20) -> str:
    names = sorted(served)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


async def _routes(caller: Caller) -> tuple[Route, ...]:
    """What the endpoint offers: for text, and where messages are to be formatted by it, for chats."""
    formats = caller.tokenizer is not None and caller.tokenizer.chat_template is not None
    text = await probe(caller, chat=False)
    chat = None if text is not None and formats else await probe(caller, chat=True)
    found = tuple(route for route in (text, chat) if route is not None)
    if not found:
        raise EndpointError(
            f"{caller.client.url} has neither completions nor chat/completions; is this the address of an "
            "OpenAI-compatible server, with its /v1?"
        )
    return found
