//! Which paths there are. Compared as they are written: no decoding, no `//`, no `..`, so there is
//! one spelling of each and nothing to smuggle past a proxy's rules.

use hyper::Method;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// The page, and what only it asks for: for loopback.
    Page,
    Check,
    Health,
    Metrics,
    Websocket,
    /// REST broadcasts.
    Broadcast,
    /// A mutation.
    Mutate,
    /// A browser asks whether a page of another origin may call.
    Preflight,
    /// Those that there are.
    WrongMethod(&'static [Method]),
    Unknown,
}

impl Route {
    pub(super) fn of(method: &Method, path: &str) -> Route {
        let (route, allowed) = match path {
            "/" => (Route::Page, Method::GET),
            "/check" => (Route::Check, Method::GET),
            "/health" => (Route::Health, Method::GET),
            "/metrics" => (Route::Metrics, Method::GET),
            "/realtime/v1/websocket" | "/socket/websocket" => (Route::Websocket, Method::GET),
            "/realtime/v1/mutate" => (Route::Mutate, Method::POST),
            _ if is_broadcast(path) => (Route::Broadcast, Method::POST),
            _ => return Route::Unknown,
        };
        if method == allowed || (allowed == Method::GET && method == Method::HEAD) {
            // A websocket cannot begin with HEAD.
            if route == Route::Websocket && method == Method::HEAD {
                return Route::WrongMethod(&[Method::GET, Method::OPTIONS]);
            }
            return route;
        }
        match (route, method) {
            // For their own origin only.
            (Route::Page | Route::Check | Route::Metrics, _) => {
                Route::WrongMethod(&[Method::GET, Method::HEAD])
            }
            (_, &Method::OPTIONS) => Route::Preflight,
            (Route::Websocket, _) => Route::WrongMethod(&[Method::GET, Method::OPTIONS]),
            (Route::Broadcast | Route::Mutate, _) => {
                Route::WrongMethod(&[Method::POST, Method::OPTIONS])
            }
            _ => Route::WrongMethod(&[Method::GET, Method::HEAD, Method::OPTIONS]),
        }
    }
}

/// `/realtime/v1/api/broadcast` or `/api/broadcast`, alone or with `/<topic>/events/<event>`.
fn is_broadcast(path: &str) -> bool {
    let rest = after_base(path);
    rest.is_some_and(|rest| rest.is_empty() || one_message(rest).is_some())
}

/// The topic and the event in the path of a single broadcast, as they are written there.
pub(super) fn addressee(path: &str) -> Option<(&str, &str)> {
    one_message(after_base(path)?)
}

fn after_base(path: &str) -> Option<&str> {
    let bases = ["/realtime/v1/api/broadcast", "/api/broadcast"];
    bases.into_iter().find_map(|base| path.strip_prefix(base))
}

fn one_message(rest: &str) -> Option<(&str, &str)> {
    let mut parts = rest.split('/');
    let mut next = || parts.next();
    let (Some(""), Some(topic), Some("events"), Some(event), None) =
        (next(), next(), next(), next(), next())
    else {
        return None;
    };
    (!topic.is_empty() && !event.is_empty()).then_some((topic, event))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_has_one_spelling() {
        let get = |path| Route::of(&Method::GET, path);

        assert_eq!(get("/"), Route::Page);
        assert_eq!(get("/health"), Route::Health);
        assert_eq!(get("/realtime/v1/websocket"), Route::Websocket);
        assert_eq!(get("/socket/websocket"), Route::Websocket);
        for path in [
            "",
            "//",
            "/./",
            "/../",
            "//health",
            "/health/",
            "/Health",
            "/%68ealth",
            "/health%00",
            "/socket",
            "/socket/websocket/",
            "/socket//websocket",
            "/socket/../socket/websocket",
            "/socket%2Fwebsocket",
            "/realtime/v1/websocket/x",
            "/realtime/v1/mutate/",
            "/mutate",
            "/api/broadcastx",
            "*",
        ] {
            assert_eq!(get(path), Route::Unknown, "{path}");
        }
    }

    #[test]
    fn methods_are_checked() {
        assert_eq!(Route::of(&Method::HEAD, "/health"), Route::Health);
        assert_eq!(
            Route::of(&Method::POST, "/health"),
            Route::WrongMethod(&[Method::GET, Method::HEAD, Method::OPTIONS])
        );
        assert_eq!(Route::of(&Method::OPTIONS, "/socket/websocket"), Route::Preflight);
        assert_eq!(
            Route::of(&Method::OPTIONS, "/"),
            Route::WrongMethod(&[Method::GET, Method::HEAD])
        );
        assert_eq!(
            Route::of(&Method::HEAD, "/socket/websocket"),
            Route::WrongMethod(&[Method::GET, Method::OPTIONS])
        );
        assert_eq!(Route::of(&Method::OPTIONS, "/nothing"), Route::Unknown);
        assert_eq!(Route::of(&Method::POST, "/realtime/v1/mutate"), Route::Mutate);
        assert_eq!(Route::of(&Method::OPTIONS, "/realtime/v1/mutate"), Route::Preflight);
        assert_eq!(
            Route::of(&Method::GET, "/realtime/v1/mutate"),
            Route::WrongMethod(&[Method::POST, Method::OPTIONS])
        );
    }

    #[test]
    fn rest_broadcasts_are_known_by_both_bases() {
        let post = |path| Route::of(&Method::POST, path);

        assert_eq!(post("/api/broadcast"), Route::Broadcast);
        assert_eq!(post("/realtime/v1/api/broadcast"), Route::Broadcast);
        assert_eq!(post("/realtime/v1/api/broadcast/room1/events/ev1"), Route::Broadcast);
        assert_eq!(addressee("/api/broadcast/a%2Fb/events/e"), Some(("a%2Fb", "e")));
        assert_eq!(addressee("/realtime/v1/api/broadcast"), None);
        assert_eq!(post("/api/broadcast/room1"), Route::Unknown);
        assert_eq!(post("/api/broadcast//events/x"), Route::Unknown);
    }
}
