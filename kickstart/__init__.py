"""The kickstart of the installer: rendered from a model, validated by pykickstart, scripts of its own."""
