//! windlass-agent.
