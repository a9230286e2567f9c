//! The store in a data directory: one SQLite file that several processes of one host share.
