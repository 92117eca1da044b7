//! Guest-physical memory: lazily mapped chunks, bounds-checked copies, the dirty log.
