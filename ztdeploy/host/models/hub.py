"""The model hub: whether it answers, and files from it or its cache, without waiting for a hub that is not there."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from ztdeploy.core.errors import ModelError, WeightsUnavailableError


def reachable(timeout_s: float = 3.0) -> bool:
    """Whether the hub answers at all; its client retries for most of a minute before it says so."""
    from huggingface_hub.constants import ENDPOINT

    parts = urlsplit(os.environ.get("HTTPS_PROXY") or ENDPOINT)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def fetched(repository: str, configurations: tuple[str, ...], weights: tuple[str, ...] = ()) -> Path:
    """The folder of a repository's files in the hub's cache.

    Args:
        repository: `OWNER/NAME`, or `OWNER/NAME@REVISION`.
        configurations: names of files that are fetched where there are any.
        weights: names of files of which the first that there is is fetched; with an index of shards, these as well.

    Raises:
        ModelError: no repository can have such a name.
        WeightsUnavailableError: the hub cannot be reached and nothing is cached, or it has no such files.
    """
    import huggingface_hub.constants
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    from ztdeploy.host.models.folders import shards_of

    name, _, revision = repository.partition("@")
    offline = huggingface_hub.constants.HF_HUB_OFFLINE or not reachable()
    absent = WeightsUnavailableError(
        f"'{repository}' is neither cached nor to be had from the model hub",
        "a cached or downloadable repository of weights",
        "download it where there is a network, and give --model local-dir:DIR",
    )

    def get(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(name, file, revision=revision or None, local_files_only=offline))
        except EntryNotFoundError:  # or, without the hub, not cached
            return None
        except HFValidationError as error:
            raise ModelError(
                f"'{repository}'", "a repository such as 'timm/vit_tiny_patch16_224.augreg_in21k'", "correct it"
            ) from error
        except (OSError, ValueError) as error:
            raise absent from error

    found = [path for file in configurations if (path := get(file)) is not None]
    chosen = next((path for file in weights if (path := get(file)) is not None), None)
    if not found or (weights and chosen is None):
        raise absent
    if chosen is not None and chosen.suffix == ".json" and not all(get(shard.name) for shard in shards_of(chosen)):
        raise absent
    return found[0].parent
