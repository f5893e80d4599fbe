//! Redis store for tower-admission: one limit for all replicas of a service.
