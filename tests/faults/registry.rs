//! Registries that answer wrongly, or not at all.
