//! The listener on real sockets, with the real hub behind it and helpers made up for the tests.

mod broadcast;
mod channel;
mod filters;
mod http;
mod identity;
mod limit;
mod memory;
mod mutations;
mod presence;
mod rest;
mod websocket;
mod world;
