//! Who a client is: JSON web tokens, as PostgREST and Supabase use them.

mod error;
mod key;
#[cfg(test)]
mod tests;
mod token;
mod verifier;

pub use error::{AuthError, KeyError};
pub use key::MIN_SECRET;
pub use token::{Shape, token_shape};
pub use verifier::{Identity, MAX_TOKEN, Verifier};
