//! Files of the store that were damaged since they were written.
