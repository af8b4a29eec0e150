//! HTTP/3 adapter for noq.
