//! What a client may do on a channel, as the policies of `tide.channel` or the settings grant it.

use std::sync::Arc;

use tide_feed::catalog::Grant;
use tide_feed::config::Config;

use crate::catalog::{Asker, CatalogError};

/// What of a topic is asked about: values of `tide.channel.extension`.
pub(super) type Extensions = &'static [&'static str];

/// Of an application's own channel.
pub(super) const CHANNEL: Extensions = &["broadcast", "presence"];
/// Of `tide:notify:` topics.
pub(super) const NOTIFY: Extensions = &["notify"];
/// Of `tide:schema` topics.
pub(super) const SCHEMA: Extensions = &["schema"];
/// For the REST endpoint, which knows no presence.
pub(super) const BROADCAST: Extensions = &["broadcast"];

/// A question to the policies.
pub(super) type AccessQuestion = (Asker, Arc<str>, Extensions);
pub(super) type AccessAnswer = Result<Access, CatalogError>;

/// What a client has been granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Access {
    /// None on a channel that no policy was asked about.
    asked: Extensions,
    grants: [Grant; 2],
}

impl Access {
    /// On a channel that is not private.
    pub(super) fn public(config: &Config) -> Access {
        let (read, send) = (config.public_channels, config.public_channels_send);
        let grant = Grant { read, write: read && send };
        Access { asked: &[], grants: [grant; 2] }
    }

    /// Messages and broadcasts; of a topic of ours, whatever it carries.
    pub(super) fn broadcast(&self) -> Grant {
        self.grants[0]
    }

    pub(super) fn presence(&self) -> Grant {
        self.grants[1]
    }

    /// What the policies were asked; to be asked again when the token changes.
    pub(super) fn asked(&self) -> Extensions {
        self.asked
    }

    pub(super) fn of(asked: Extensions, answers: &[Grant]) -> Access {
        let mut grants = [Grant::default(); 2];
        for (grant, answer) in grants.iter_mut().zip(answers) {
            *grant = *answer;
        }
        Access { asked, grants }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_answered_is_not_granted() {
        let grant = Grant { read: true, write: false };

        let access = Access::of(CHANNEL, &[grant]);

        assert_eq!((access.broadcast(), access.presence()), (grant, Grant::default()));
    }

    #[test]
    fn public_channels_are_closed_until_a_setting_opens_them() {
        let access = |public_channels, public_channels_send| {
            let config = Config { public_channels, public_channels_send, ..Config::default() };
            Access::public(&config).broadcast()
        };

        assert_eq!(access(false, false), Grant::default());
        assert_eq!(access(false, true), Grant::default());
        assert_eq!(access(true, false), Grant { read: true, write: false });
        assert_eq!(access(true, true), Grant { read: true, write: true });
    }
}
