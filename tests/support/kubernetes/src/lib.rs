//! A double of the Kubernetes API server, for tests.
