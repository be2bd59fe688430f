//! Every kind of token that passes, and every kind that does not.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaEncoding,
    RsaKeyPair,
};
use ring::{hmac, rsa};
use serde_json::{Map, Value, json};
use tide_feed::token::sign;

use super::*;

/// Made for these tests and used nowhere else; ring makes no RSA keys.
const RSA_PEM: &str = include_str!("rsa_for_tests.pem");
const SECRET: &str = "a secret of thirty-two bytes....";
const OTHER_SECRET: &str = "another secret, of the same size";
const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token of which only the signature is left to `sign`.
fn token(header: &Value, payload: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", base64(header.to_string()), base64(payload));
    let signature = base64(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn hmac_sign(algorithm: hmac::Algorithm, secret: &[u8]) -> impl Fn(&[u8]) -> Vec<u8> {
    let key = hmac::Key::new(algorithm, secret);
    move |message| hmac::sign(&key, message).as_ref().to_vec()
}

fn hs256(secret: &str, payload: &str) -> String {
    token(&json!({"alg": "HS256"}), payload, hmac_sign(hmac::HMAC_SHA256, secret.as_bytes()))
}

fn claims() -> Value {
    json!({"role": "authenticated", "exp": NOW + 60, "sub": "42"})
}

/// The usual claims with some of them set, or taken away where they are null.
fn claims_with(changes: Value) -> String {
    let mut claims = claims();
    let (Value::Object(claims), Value::Object(changes)) = (&mut claims, changes) else {
        panic!("claims are objects");
    };
    for (name, value) in changes {
        match value {
            Value::Null => claims.remove(&name),
            value => claims.insert(name, value),
        };
    }
    Value::Object(claims.clone()).to_string()
}

fn verifier() -> Verifier {
    Verifier::new(vec![SECRET.into()], None, None).expect("a usable secret")
}

fn verify(token: &str) -> Result<Identity, AuthError> {
    verifier().verify(token, now())
}

fn verify_claims(payload: &str) -> Result<Identity, AuthError> {
    verify(&hs256(SECRET, payload))
}

fn key_set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

fn with_keys(keys: &[Value]) -> Verifier {
    Verifier::new(vec![SECRET.into()], Some(&key_set(keys)), None).expect("usable keys")
}

struct Ec {
    pair: EcdsaKeyPair,
    curve: &'static str,
}

impl Ec {
    fn new(algorithm: &'static EcdsaSigningAlgorithm, curve: &'static str) -> Ec {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).expect("a key");
        Ec { pair, curve }
    }

    fn p256() -> Ec {
        Ec::new(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256")
    }

    fn jwk(&self, id: &str) -> Value {
        let point = &self.pair.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        json!({"kty": "EC", "kid": id, "crv": self.curve, "x": base64(x), "y": base64(y)})
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(&SystemRandom::new(), message).expect("a signature").as_ref().to_vec()
    }
}

struct Rsa(RsaKeyPair);

impl Rsa {
    fn new() -> Rsa {
        let body: String = RSA_PEM.lines().filter(|line| !line.starts_with("-----")).collect();
        Rsa(RsaKeyPair::from_der(&STANDARD.decode(body).expect("base64")).expect("a key"))
    }

    fn jwk(&self) -> Value {
        let public: rsa::PublicKeyComponents<Vec<u8>> = self.0.public().into();
        json!({"kty": "RSA", "kid": "rsa", "n": base64(public.n), "e": base64(public.e)})
    }

    fn sign(&self, encoding: &'static dyn RsaEncoding, message: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0.sign(encoding, &SystemRandom::new(), message, &mut signature).expect("a signature");
        signature
    }
}

#[test]
fn a_token_gives_role_expiry_and_the_claims_byte_for_byte() {
    let payload = format!(r#" {{"exp" : {}, "role":"web\u0020user", "n":1.50,"x":[ ]}}"#, NOW + 1);

    let identity = verify_claims(&payload).expect("valid");

    assert_eq!(&*identity.role, "web user");
    assert_eq!(identity.exp, NOW as i64 + 1);
    assert_eq!(&*identity.claims, payload);
}

#[test]
fn every_hmac_algorithm_and_every_secret_is_tried() {
    let verifier = Verifier::new(vec![OTHER_SECRET.into(), SECRET.into()], None, None).expect("ok");
    let payload = claims().to_string();
    for secret in [SECRET, OTHER_SECRET] {
        for (name, algorithm) in [
            ("HS256", hmac::HMAC_SHA256),
            ("HS384", hmac::HMAC_SHA384),
            ("HS512", hmac::HMAC_SHA512),
        ] {
            let token = token(
                &json!({"alg": name, "kid": "unpublished"}),
                &payload,
                hmac_sign(algorithm, secret.as_bytes()),
            );
            assert!(verifier.verify(&token, now()).is_ok(), "{name}");
        }
    }
    let foreign = hs256("a secret that nobody has told us of", &payload);
    assert_eq!(verifier.verify(&foreign, now()), Err(AuthError::Signature));
}

#[test]
fn rsa_tokens_are_verified_by_the_key_set() {
    let key = Rsa::new();
    let verifier = with_keys(&[key.jwk()]);
    let algorithms: [(&str, &'static dyn RsaEncoding); 6] = [
        ("RS256", &signature::RSA_PKCS1_SHA256),
        ("RS384", &signature::RSA_PKCS1_SHA384),
        ("RS512", &signature::RSA_PKCS1_SHA512),
        ("PS256", &signature::RSA_PSS_SHA256),
        ("PS384", &signature::RSA_PSS_SHA384),
        ("PS512", &signature::RSA_PSS_SHA512),
    ];
    for (name, encoding) in algorithms {
        for header in [json!({"alg": name}), json!({"alg": name, "kid": "rsa"})] {
            let token =
                token(&header, &claims().to_string(), |message| key.sign(encoding, message));
            assert!(verifier.verify(&token, now()).is_ok(), "{header}");
        }
    }
}

#[test]
fn elliptic_and_edwards_tokens_are_verified_by_the_key_set() {
    let p256 = Ec::p256();
    let p384 = Ec::new(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384");
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
    let ed = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key");
    let ed_jwk = json!({"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": base64(ed.public_key())});
    let verifier = with_keys(&[p256.jwk("p256"), p384.jwk("p384"), ed_jwk]);
    let payload = claims().to_string();

    for kid in [Value::Null, json!("p256")] {
        let token = token(&json!({"alg": "ES256", "kid": kid}), &payload, |m| p256.sign(m));
        assert!(verifier.verify(&token, now()).is_ok());
    }
    let es384 = token(&json!({"alg": "ES384", "kid": "p384"}), &payload, |m| p384.sign(m));
    assert!(verifier.verify(&es384, now()).is_ok());
    for name in ["EdDSA", "Ed25519"] {
        let header = json!({"alg": name, "kid": "ed"});
        let token = token(&header, &payload, |message| ed.sign(message).as_ref().to_vec());
        assert!(verifier.verify(&token, now()).is_ok(), "{name}");
    }
}

#[test]
fn a_token_that_names_its_key_is_verified_by_no_other() {
    let (ours, other) = (Ec::p256(), Ec::p256());
    let verifier = with_keys(&[ours.jwk("ours"), other.jwk("other")]);
    let sign = |kid: &str| {
        token(&json!({"alg": "ES256", "kid": kid}), &claims().to_string(), |m| ours.sign(m))
    };

    assert!(verifier.verify(&sign("ours"), now()).is_ok());
    assert_eq!(verifier.verify(&sign("other"), now()), Err(AuthError::Signature));
    assert_eq!(verifier.verify(&sign("third"), now()), Err(AuthError::UnknownKey));
}

#[test]
fn a_key_verifies_only_what_it_is_published_for() {
    let key = Rsa::new();
    let token = token(&json!({"alg": "RS256"}), &claims().to_string(), |message| {
        key.sign(&signature::RSA_PKCS1_SHA256, message)
    });
    let with = |name: &str, value: &str| {
        let mut jwk = key.jwk();
        jwk[name] = value.into();
        Verifier::new(Vec::new(), Some(&key_set(&[jwk, Ec::p256().jwk("ec")])), None).expect("ok")
    };

    assert!(with("alg", "RS256").verify(&token, now()).is_ok());
    assert_eq!(with("alg", "PS256").verify(&token, now()), Err(AuthError::UnknownKey));
    assert!(with("use", "sig").verify(&token, now()).is_ok());
    assert_eq!(with("use", "enc").verify(&token, now()), Err(AuthError::UnknownKey));
}

#[test]
fn a_shared_key_of_the_set_verifies_by_its_id() {
    let verifier = with_keys(&[json!({"kty": "oct", "kid": "s", "k": base64(OTHER_SECRET)})]);
    let sign = |secret: &str, header: Value| {
        token(&header, &claims().to_string(), hmac_sign(hmac::HMAC_SHA256, secret.as_bytes()))
    };

    assert!(
        verifier.verify(&sign(OTHER_SECRET, json!({"alg": "HS256", "kid": "s"})), now()).is_ok()
    );
    assert!(verifier.verify(&sign(SECRET, json!({"alg": "HS256"})), now()).is_ok());
    assert_eq!(
        verifier.verify(&sign(SECRET, json!({"alg": "HS256", "kid": "s"})), now()),
        Err(AuthError::Signature)
    );
}

#[test]
fn unsigned_tokens_are_refused() {
    for name in ["none", "None", "NONE", "nOnE", "", "HS1", "ES512"] {
        for signature in ["", "AAAA"] {
            let header = base64(json!({"alg": name}).to_string());
            let token = format!("{header}.{}.{signature}", base64(claims().to_string()));
            assert_eq!(verify(&token), Err(AuthError::Algorithm), "{name}");
        }
    }
    let unsigned = format!("{}.{}.", base64(r#"{"alg":"HS256"}"#), base64(claims().to_string()));
    assert_eq!(verify(&unsigned), Err(AuthError::Signature));
}

#[test]
fn a_public_key_is_never_taken_for_a_secret() {
    let rsa = Rsa::new();
    let ec = Ec::p256();
    let set = key_set(&[rsa.jwk(), ec.jwk("ec")]);
    let modulus = rsa.jwk()["n"].as_str().expect("text").to_owned();
    let raw_modulus = URL_SAFE_NO_PAD.decode(&modulus).expect("base64");
    let guesses = [
        set.as_bytes().to_vec(),
        RSA_PEM.into(),
        modulus.into(),
        raw_modulus,
        rsa.jwk().to_string().into(),
        ec.pair.public_key().as_ref().to_vec(),
    ];
    let with_secret = with_keys(&[rsa.jwk(), ec.jwk("ec")]);
    let without = Verifier::new(Vec::new(), Some(&set), None).expect("ok");

    for guess in guesses {
        for header in [json!({"alg": "HS256"}), json!({"alg": "HS256", "kid": "rsa"})] {
            let sign = hmac_sign(hmac::HMAC_SHA256, &guess);
            let token = token(&header, &claims().to_string(), sign);
            assert_eq!(with_secret.verify(&token, now()), Err(AuthError::Signature));
            assert_eq!(without.verify(&token, now()), Err(AuthError::UnknownKey));
        }
    }
}

#[test]
fn a_signature_for_one_algorithm_does_not_pass_for_another() {
    let ec = Ec::p256();
    let verifier = with_keys(&[ec.jwk("ec"), Rsa::new().jwk()]);
    for name in ["ES384", "EdDSA", "RS256", "PS512", "HS256"] {
        let header = json!({"alg": name, "kid": "ec"});
        let token = token(&header, &claims().to_string(), |message| ec.sign(message));
        let error = verifier.verify(&token, now()).expect_err(name);
        assert!(matches!(error, AuthError::UnknownKey | AuthError::Signature), "{name} {error:?}");
    }
}

#[test]
fn expiry_is_required_and_kept_to_the_second() {
    let with = |exp: Value| verify_claims(&claims_with(json!({ "exp": exp })));

    assert_eq!(with(Value::Null), Err(AuthError::NoExpiry));
    assert!(with(json!(NOW + 1)).is_ok());
    assert_eq!(with(json!(NOW)), Err(AuthError::Expired { seconds_ago: 0 }));
    assert_eq!(with(json!(NOW - 5)), Err(AuthError::Expired { seconds_ago: 5 }));
    assert_eq!(with(json!(0)), Err(AuthError::Expired { seconds_ago: NOW as i64 }));
    assert_eq!(with(json!(i64::MIN)), Err(AuthError::Expired { seconds_ago: i64::MAX }));
    for exp in [
        json!("soon"),
        json!((NOW + 60).to_string()),
        json!(1.9e9),
        json!(true),
        json!([]),
        json!({}),
    ] {
        assert_eq!(with(exp.clone()), Err(AuthError::InvalidExpiry), "{exp}");
    }
}

#[test]
fn an_expiry_beyond_all_counting_does_not_wrap() {
    for exp in ["9223372036854775807", "9223372036854775808", "18446744073709551615"] {
        let identity = verify_claims(&format!(r#"{{"role":"r","exp":{exp}}}"#)).expect(exp);
        assert_eq!(identity.exp, i64::MAX);
    }
    assert_eq!(
        verify_claims(r#"{"role":"r","exp":18446744073709551616}"#),
        Err(AuthError::InvalidExpiry)
    );
}

#[test]
fn a_token_is_not_valid_before_its_time() {
    let with = |nbf: Value| verify_claims(&claims_with(json!({ "nbf": nbf })));

    assert!(with(json!(NOW)).is_ok());
    assert!(with(json!(NOW as f64 - 0.5)).is_ok());
    assert_eq!(with(json!(NOW + 31)), Err(AuthError::NotYetValid));
    assert_eq!(with(json!(u64::MAX)), Err(AuthError::NotYetValid));
    assert_eq!(with(json!("later")), Err(AuthError::NotYetValid));
}

#[test]
fn a_role_is_required_and_has_to_be_a_possible_name() {
    let with = |role: Value| verify_claims(&claims_with(json!({ "role": role })));

    assert_eq!(with(Value::Null), Err(AuthError::NoRole));
    assert!(with(json!("x".repeat(63))).is_ok());
    for role in [
        json!(1),
        json!(["a"]),
        json!({}),
        json!(true),
        json!(""),
        json!("a\0b"),
        json!("x".repeat(64)),
    ] {
        assert_eq!(with(role.clone()), Err(AuthError::InvalidRole), "{role}");
    }
}

#[test]
fn the_audience_has_to_be_named_where_one_is_configured() {
    let strict = Verifier::new(vec![SECRET.into()], None, Some("tide".into())).expect("ok");
    let with =
        |aud: Value| strict.verify(&hs256(SECRET, &claims_with(json!({ "aud": aud }))), now());

    assert!(with(json!("tide")).is_ok());
    assert!(with(json!(["other", "tide"])).is_ok());
    for aud in
        [Value::Null, json!("other"), json!([]), json!(["other", 1]), json!(1), json!({"tide": 1})]
    {
        assert_eq!(with(aud.clone()), Err(AuthError::Audience), "{aud}");
    }
    assert!(verify_claims(&claims_with(json!({"aud": "other"}))).is_ok());
}

#[test]
fn malformed_tokens_are_refused() {
    let header = base64(r#"{"alg":"HS256"}"#);
    let texts = [
        String::new(),
        ".".into(),
        "..".into(),
        "a.b".into(),
        "a.b.c.d".into(),
        "é.é.é".into(),
        format!("{header}=.{header}.{header}"),
        format!("{}.{header}.{header}", base64(r#"["HS256",null,null]"#)),
        format!("{}.{header}.{header}", base64("{}")),
        format!("{}.{header}.{header}", base64(r#"{"alg":1}"#)),
        format!("{}.{header}.{header}", base64(r#"{"alg":"HS256","alg":"none"}"#)),
        format!("{}.{header}.{header}", base64(r#"{"alg":"HS256","kid":1}"#)),
        format!("{}.{header}.{header}", base64(r#"{"alg":"HS256","crit":["b64"]}"#)),
        format!("{}.{header}.{header}", base64([0xff, 0xfe])),
    ];
    for text in texts {
        assert_eq!(verify(&text), Err(AuthError::Malformed), "{text}");
    }
    for payload in [
        "",
        "null",
        "{",
        r#"["authenticated", 9999999999, null, null]"#,
        r#"{"role":"anon","role":"postgres","exp":9999999999}"#,
        &format!("{{\"role\":{}{}}}", "[".repeat(1000), "]".repeat(1000)),
    ] {
        assert_eq!(verify_claims(payload), Err(AuthError::Malformed), "{payload}");
    }
}

#[test]
fn long_tokens_are_refused_unread() {
    assert_eq!(verify(&"x".repeat(MAX_TOKEN + 1)), Err(AuthError::TooLong));
    assert_eq!(verify(&"x".repeat(MAX_TOKEN)), Err(AuthError::Malformed));
}

#[test]
fn keys_that_cannot_work_are_refused() {
    let with = |jwks: &str| Verifier::new(Vec::new(), Some(jwks), None);

    for secret in ["", "short", &"x".repeat(MIN_SECRET - 1)] {
        assert!(matches!(
            Verifier::new(vec![SECRET.into(), secret.into()], None, None),
            Err(KeyError::ShortSecret)
        ));
    }
    for jwks in ["", "[]", "{}", r#"{"keys":{}}"#] {
        assert!(matches!(with(jwks), Err(KeyError::NotAKeySet { .. })), "{jwks}");
    }
    for key in [
        json!(1),
        json!({"kty": "RSA"}),
        json!({"kty": "RSA", "n": "?", "e": "AQAB"}),
        json!({"kty": "EC", "crv": "P-521", "x": "", "y": ""}),
        json!({"kty": "OKP", "crv": "X25519", "x": "AAAA"}),
        json!({"kty": "oct", "k": base64("short")}),
    ] {
        assert!(
            matches!(with(&key_set(std::slice::from_ref(&key))), Err(KeyError::NoUsableKey)),
            "{key}"
        );
    }
    assert!(with(&key_set(&[json!({"kty": "new"}), Ec::p256().jwk("ec")])).is_ok());
}

#[test]
fn our_own_tokens_pass_and_cannot_be_given_another_role_or_expiry() {
    let claims = json!({"sub": "42", "role": "postgres", "exp": 1, "org": {"id": 7}});
    let claims: Map<String, Value> = claims.as_object().expect("an object").clone();

    let token = sign(SECRET, "authenticated", claims, Duration::from_secs(3600), now());

    let identity = verify(&token).expect("valid");
    assert_eq!(&*identity.role, "authenticated");
    assert_eq!(identity.exp, NOW as i64 + 3600);
    let claims: Value = serde_json::from_str(&identity.claims).expect("JSON");
    assert_eq!(
        claims,
        json!({"sub": "42", "role": "authenticated", "org": {"id": 7},
        "iat": NOW, "exp": NOW + 3600})
    );
    assert_eq!(token_shape(&token), Shape::Jwt);
}

#[test]
fn a_token_without_end_is_signed_to_the_end_of_time() {
    let token = sign(SECRET, "r", Map::new(), Duration::MAX, now());

    assert_eq!(verify(&token).expect("valid").exp, i64::MAX);
}

#[test]
fn plain_keys_are_told_from_tokens() {
    for text in ["", "anon", "sb_publishable_abc-123", "sb_secret_x", "a.b", "1.2.3.4", "null"] {
        assert_eq!(token_shape(text), Shape::Opaque, "{text}");
    }
    for text in ["a.b.c", "..", "eyJhbGciOi", " eyJhbGciOi.x", "eyJh.a.b.c.d", &hs256(SECRET, "{}")]
    {
        assert_eq!(token_shape(text), Shape::Jwt, "{text}");
    }
}

#[test]
fn refusals_speak_supabase_s_language() {
    let table = [
        (AuthError::Missing, "MissingAPIKey", "API key is missing"),
        (AuthError::Malformed, "MalformedJWT", "The token provided is not a valid JWT"),
        (AuthError::TooLong, "MalformedJWT", "The token provided is not a valid JWT"),
        (AuthError::Signature, "JwtSignatureError", "Failed to validate JWT signature"),
        (AuthError::Algorithm, "JwtSignatureError", "Failed to validate JWT signature"),
        (AuthError::NoRole, "InvalidJWTToken", "Fields `role` and `exp` are required in JWT"),
        (AuthError::NoExpiry, "InvalidJWTToken", "Fields `role` and `exp` are required in JWT"),
        (AuthError::Expired { seconds_ago: 3 }, "InvalidJWTToken", "Token has expired"),
    ];
    for (error, code, text) in table {
        assert_eq!((error.code(), error.to_string().as_str()), (code, text));
    }
    assert_eq!(
        AuthError::Expired { seconds_ago: 3 }.reason(),
        "InvalidJWTToken: Token has expired 3 seconds ago"
    );
}

#[test]
fn nothing_secret_is_printed() {
    let key = json!({"kty": "oct", "kid": "s", "k": base64(OTHER_SECRET)});
    let verifier = with_keys(&[key]);
    let identity = verify_claims(&claims_with(json!({"email": "who@example.org"}))).expect("valid");

    let printed = format!("{verifier:?} {verifier:#?} {identity:?} {identity:#?}");

    for secret in [SECRET, OTHER_SECRET, &base64(OTHER_SECRET), "who@example.org", "sub"] {
        assert!(!printed.contains(secret), "{printed}");
    }
    let failed = Verifier::new(vec![SECRET.into(), "short-secret".into()], None, None);
    assert!(!format!("{failed:?}").contains("short-secret"));
    let failed = Verifier::new(Vec::new(), Some("{\"keys\": \"k-e-y\"}"), None);
    assert!(!format!("{failed:?}").contains("k-e-y"));
}

proptest! {
    #[test]
    fn any_text_is_refused(text in ".*", parts in prop::collection::vec(".*", 3)) {
        prop_assert!(verify(&text).is_err());
        let parts: Vec<String> = parts.iter().map(base64).collect();
        prop_assert!(verify(&parts.join(".")).is_err());
        token_shape(&text);
    }

    #[test]
    fn a_token_with_any_byte_changed_is_refused(at in any::<prop::sample::Index>(), byte in b'!'..b'~') {
        let mut bytes = hs256(SECRET, &claims().to_string()).into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        let changed = String::from_utf8(bytes).expect("ASCII");

        prop_assert!(verify(&changed).is_err());
    }
}
