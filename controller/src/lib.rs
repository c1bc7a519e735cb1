//! windlass-controller.
