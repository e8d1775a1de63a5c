"""The settings document: one pydantic model that describes the box."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """The whole document; see docs/settings.md, which is generated from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
