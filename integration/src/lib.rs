//! Whole-system tests: the house's arrows, generated code, crashes, bad input, real servers and foreign clients.
//!
//! Nothing here is shipped. The tests are in `tests/`, the clients of other languages in `clients/`.
