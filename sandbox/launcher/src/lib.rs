//! windlass-launcher.
