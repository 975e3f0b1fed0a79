//! The one binary of the whole-system tests.

mod architecture;
mod bad_definitions;
mod crash;
mod flights;
mod generated_code;
mod language;
mod memory;
mod project;
mod push;
mod s3;
mod schedule;
mod seeded;
mod time_rules;
mod windows;
mod wire;
