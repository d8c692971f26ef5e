-- Tables of the types themselves (rt_…) stay: they are data.
DROP TABLE resource_types;
DROP TABLE runtime_generation;
