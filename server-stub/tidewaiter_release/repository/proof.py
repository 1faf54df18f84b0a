"""Whether the signatures that came back with a request are enough, over the repository as it is.

Nothing that the request says of itself counts: keys and thresholds are those of the repository, or of a new root that the old one
vouches for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Key, Signature
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization.json import CanonicalJSONSerializer

from tidewaiter_release.errors import InputError, RepositoryError, StaleRequestError, ThresholdError
from tidewaiter_release.repository.keys import name_of
from tidewaiter_release.repository.media import has_media
from tidewaiter_release.repository.request import Item, Request
from tidewaiter_release.repository.roles import Side
from tidewaiter_release.repository.sign import ItemSignature
from tidewaiter_release.repository.stage import all_keys
from tidewaiter_release.repository.store import State, Store


class Present:
    """The repository as it is, and the documents of the request over it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.online = store.load()
        self.media = store.media.load() if has_media(store) else None

    def state(self, side: Side) -> State:
        """One side as it is; RepositoryError where there is none."""
        state = self.online if side is Side.ONLINE else self.media
        if state is None:
            raise RepositoryError(f"{self.store.directory}: has no media side, but the request is for one")
        return state

    def metadata(self, item: Item) -> Metadata[Any] | None:
        """What is published under the name of an item, if anything is."""
        state = self.state(item.side)
        if item.role not in ("root", "targets", "snapshot", "timestamp", *state.delegated):
            return None
        return dict(state.all())[item.role]

    def root(self, side: Side, version: int) -> Root:
        """A root of the past.

        Raises:
            StaleRequestError: There is none of this version.
        """
        roots = (self.store if side is Side.ONLINE else self.store.media).roots()
        if not 1 <= version <= len(roots):
            raise StaleRequestError(f"{side} side: has roots 1..{len(roots)}, the request is over {version}")
        return roots[version - 1].signed

    def holds(self, item: Item) -> bool:
        """Whether exactly this document is published."""
        present = self.metadata(item)
        return present is not None and CanonicalJSONSerializer().serialize(present.signed) == item.data

    def check_next(self, item: Item) -> None:
        """Refuse an item that was staged over another state than this one."""
        present = self.metadata(item)
        found = "none" if present is None else str(present.signed.version)
        same = present is not None and item.present is not None and self._bytes(item) == item.present
        if not same or present is None or present.signed.version + 1 != item.version:
            raise StaleRequestError(
                f"{item.name}: the repository holds {item.desk_name} version {found} and has moved on since the request "
                "was made; stage it again. Nothing was published"
            )

    def _bytes(self, item: Item) -> bytes:
        store = self.store if item.side is Side.ONLINE else self.store.media
        name = "timestamp.json" if item.role == "timestamp" else f"{item.version - 1}.{item.role}.json"
        return store.read(name)


def proven(
    item: Item, now: Present | None, request: Request, signatures: Sequence[ItemSignature]
) -> Metadata[Any]:
    """The item with its good signatures, proven to be enough for everyone who delegates to its role.

    Args:
        now: None while the repository is yet to be made.

    Raises:
        ThresholdError: Signatures are missing; says whose.
        InputError: A signature is over other bytes, or a document is missing.
    """
    delegators = _delegators(item, now, request)
    keys = all_keys(delegators, item.role)
    metadata: Metadata[Any] = Metadata(item.signed())
    for one in signatures:
        if one.item == item.name and one.signature.keyid in keys:
            _check(item, keys[one.signature.keyid], one.signature)
            metadata.signatures[one.signature.keyid] = one.signature
    missing = list(dict.fromkeys(_missing(item, delegators, metadata)))
    if missing and (now is None or not now.holds(item)):
        raise ThresholdError(f"{'; '.join(missing)}. Nothing was published")
    return metadata


def _check(item: Item, key: Key, signature: Signature) -> None:
    try:
        key.verify_signature(signature, item.data)
    except (UnverifiedSignatureError, VerificationError) as err:
        raise InputError(
            f"{item.name}: the signature of {name_of(key)} is over other bytes or damaged; let them sign this request "
            "again. Nothing was published"
        ) from err


def _missing(item: Item, delegators: Sequence[Root | Targets], metadata: Metadata[Any]) -> list[str]:
    """One sentence per delegator that is not satisfied."""
    sentences = []
    for delegator in delegators:
        role = delegator.get_delegated_role(item.role)
        there = [keyid for keyid in role.keyids if keyid in metadata.signatures]
        lacking = role.threshold - len(there)
        if lacking > 0:
            others = [name_of(delegator.get_key(keyid)) for keyid in role.keyids if keyid not in there]
            sentences.append(
                f"{item.name}: {len(there)} of {role.threshold} signatures, {lacking} more of {', '.join(others)} "
                f"{'has' if lacking == 1 else 'have'} to sign"
            )
    return sentences


def _delegators(item: Item, now: Present | None, request: Request) -> list[Root | Targets]:
    """Whoever says which keys sign the item; with `now` None the repository is yet to be made."""

    def document(side: Side, role: str) -> Root | Targets:
        changed = request.item(side, role)
        if changed is not None:
            signed = changed.signed()
        elif now is not None:
            signed = now.state(side).document(role)
        else:
            raise InputError(f"the request has no {side.desk_name(role)}; no repository can be made of it")
        if not isinstance(signed, Root | Targets):
            raise InputError(f"{item.name}: request.json has {role} where a root or targets belongs")
        return signed

    if item.role == "root":
        # The predecessor, also when this very root was published by an interrupted attempt.
        before = [] if now is None or item.version == 1 else [now.root(item.side, item.version - 1)]
        return [*before, document(item.side, "root")]
    if item.role == "targets":
        online = document(Side.ONLINE, "root")
        return [online, document(Side.MEDIA, "root")] if now is None or now.media is not None else [online]
    if item.role in ("snapshot", "timestamp"):
        return [document(Side.MEDIA, "root")]
    return [document(Side.ONLINE, "targets")]
