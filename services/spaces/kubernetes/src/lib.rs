//! Spaces on Kubernetes: a pod and a claim for each.

mod exec;
