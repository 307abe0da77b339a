"""The base of every value in the manifest: frozen, strict, nothing extra, finite numbers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A fact: it is checked when it is made and never changes."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
