//! windlass-crds.
