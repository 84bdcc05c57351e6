//! SIF on demand: shows a registry image as a directory, runs programs in it, packs it into a SIF.

pub mod pack;

pub mod container;

pub mod demo;
