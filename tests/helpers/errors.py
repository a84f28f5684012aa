"""How every test of a refusal looks at the error."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ztdeploy.core.errors import BundleError, ZtdeployError


def refused(call: Callable[[], object], *fragments: str, kind: type[ZtdeployError] = BundleError) -> str:
    """The message of the error that a call must raise: of exactly that class, on one line, with all fragments in it."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert len(message.splitlines()) == 1, message
    assert all(fragment in message for fragment in fragments), message
    return message
