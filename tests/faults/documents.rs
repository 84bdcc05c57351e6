//! Blobs, manifests and configurations that are not what their names say.
