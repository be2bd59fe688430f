//! Telling tokens from plain keys.

/// What an `apikey` looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A token, which has to be a valid one.
    Jwt,
    /// Something else (`anon`, `sb_publishable_...`), which stands for no token at all.
    Opaque,
}

/// Tells a token, however damaged, from a plain key. Whoever meant to show a token is not taken
/// for a client without one.
pub fn token_shape(text: &str) -> Shape {
    let text = text.trim();
    // `{"` in base64: the beginning of every token's header, be it cut off or of another kind.
    let begins_as_one = text.starts_with("eyJ");
    let three_parts = text.split('.').count() == 3;
    if begins_as_one || three_parts { Shape::Jwt } else { Shape::Opaque }
}
