//! windlass-tests.
