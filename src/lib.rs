//! SIF on demand: shows a registry image as a directory, runs programs in it, packs it into a SIF.
//!
//! The modules stand in dependency order: each names only those above it. What makes an image readable is in
//! [`sifon_mount`]; here is what a user says and sees.

pub mod output;
pub mod setting;

pub mod pack;

pub mod signature;

pub mod container;

pub mod doctor;

pub mod demo;

pub mod command;

pub mod cli;
