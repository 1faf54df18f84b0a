"""The release tool: images become packs, packs become signed TUF targets. Never on a device."""
