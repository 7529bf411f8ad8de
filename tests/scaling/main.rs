//! The scaling mathematics against transformers, published factor sets, and the specification's closed forms.

mod golden;
mod hf_config;
mod methods;
mod published;
mod round_trips;
mod schedule;
mod steps;
