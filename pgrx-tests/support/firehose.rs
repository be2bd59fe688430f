//! Reads as fast as an unoptimised test program can: frames are told apart and counted, and of
//! each row only the id is looked at.

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::Client;

const MARK: &[u8] = br#""record":{"id":"#;
const HEARTBEAT: Duration = Duration::from_secs(20);
/// Replies to heartbeats come all the time; rows do once the transaction is committed.
const PATIENCE: Duration = Duration::from_secs(600);

/// Reads the inserted rows with the ids from 1 to `rows`, in this order, which must be the only
/// changes that the client gets. The client must have read everything up to here.
pub fn read_rows(client: &mut Client, rows: u64) {
    let mut buffer = vec![0; 4 << 20];
    let (mut filled, mut next) = (0, 1);
    // Where the id is in a frame; the same in all of them, as they begin alike.
    let mut place = 0;
    let (mut beat, mut progress) = (Instant::now(), Instant::now());
    client.stream().set_read_timeout(Some(HEARTBEAT)).unwrap();
    while next <= rows {
        if beat.elapsed() >= HEARTBEAT {
            client.push("phoenix", "heartbeat", &json!({}));
            beat = Instant::now();
        }
        let count = match client.stream().read(&mut buffer[filled..]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            read => read.unwrap(),
        };
        assert!(progress.elapsed() < PATIENCE, "nothing more comes before row {next}");
        assert_ne!(count, 0, "the connection has ended before row {next}");
        filled += count;
        let mut start = 0;
        while let Some((payload, end)) = frame(&buffer[..filled], start) {
            if let Some(id) = id(payload, &mut place) {
                assert_eq!(id, next, "a row is missing, twice or in the wrong place");
                next += 1;
                progress = Instant::now();
            }
            start = end;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
    }
}

/// The payload of the websocket frame that begins at `start`, and where it ends.
fn frame(buffer: &[u8], start: usize) -> Option<(&[u8], usize)> {
    let header = buffer.get(start..start + 2)?;
    // A server's frame is not masked, and ours are never in pieces.
    let (length, body) = match header[1] {
        126 => {
            let length = buffer.get(start + 2..start + 4)?;
            (usize::from(u16::from_be_bytes(length.try_into().unwrap())), start + 4)
        }
        127 => {
            let length = buffer.get(start + 2..start + 10)?;
            (u64::from_be_bytes(length.try_into().unwrap()) as usize, start + 10)
        }
        length => (usize::from(length), start + 2),
    };
    assert_ne!(header[0] & 0x0f, 8, "the server has closed: {:?}", &buffer[start..]);
    Some((buffer.get(body..body + length)?, body + length))
}

/// The id in a change's frame; `None` for other frames.
fn id(payload: &[u8], place: &mut usize) -> Option<u64> {
    let at_mark = |place: usize| payload.get(place..place + MARK.len()) == Some(MARK);
    if !at_mark(*place) {
        *place = (0..payload.len()).find(|place| at_mark(*place))?;
    }
    let digits = payload[*place + MARK.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |id, digit| id * 10 + u64::from(digit - b'0')))
}
