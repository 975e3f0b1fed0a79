//! The one binary of the whole-system tests.

mod architecture;
mod backfill;
mod bad_definitions;
mod bounds;
mod crash;
mod faulty_store;
mod flights;
mod fuzz;
mod generated_code;
mod language;
mod late_history;
mod lists;
mod memory;
mod network;
mod power_cut;
mod project;
mod push;
mod s3;
mod schedule;
mod seeded;
mod simulation;
mod slow_disk;
mod time_rules;
mod windows;
mod wire;
mod zones;
