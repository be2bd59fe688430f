//! Whatever the server asks a helper, or a helper answers, is understood or refused; and what is
//! understood is the same when it is said again.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tide_feed::catalog::{
    Cast, Changes, ClaimsOutcomes, Finding, Grant, Hello, Outbox, PolicyOutcomes, Reply, Request,
    Retired, RoleStatus, Secrets, Tables, TakenOver, Unpublished, Visibility,
};
use tide_feed::control::ControlRequest;

fuzz_target!(|bytes: &[u8]| {
    same::<Hello>(bytes);
    same::<Request>(bytes);
    same::<ControlRequest>(bytes);
    let Ok(Reply::Ok(answer)) = serde_json::from_slice(bytes) else { return };
    let answer = answer.get();
    understood::<Secrets>(answer);
    understood::<RoleStatus>(answer);
    understood::<Tables>(answer);
    understood::<Changes>(answer);
    understood::<Visibility>(answer);
    understood::<Cast>(answer);
    understood::<PolicyOutcomes>(answer);
    understood::<ClaimsOutcomes>(answer);
    understood::<Vec<Grant>>(answer);
    understood::<Vec<Finding>>(answer);
    understood::<Vec<Outbox>>(answer);
    understood::<TakenOver>(answer);
    understood::<Retired>(answer);
    understood::<Unpublished>(answer);
});

fn same<T: Debug + PartialEq + Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(said) = serde_json::from_slice::<T>(bytes) else { return };
    let again = serde_json::to_vec(&said).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&again).expect("and read again"), said);
}

fn understood<T: DeserializeOwned>(answer: &str) {
    let _ = serde_json::from_str::<T>(answer);
}
