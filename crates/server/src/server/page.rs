//! `GET /`: one embedded file that shows the events as they come.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::{self, HeaderName, HeaderValue};

const PAGE: &str = include_str!("page.html");

/// In the page, for the role of those who come without a token.
const ANONYMOUS_ROLE: &str = "{{anonymous_role}}";

/// Nothing but what the file itself contains, and talk to its own origin only.
static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let script = hash_of("<script>", "</script>")?;
    let style = hash_of("<style>", "</style>")?;
    HeaderValue::from_str(&format!(
        "default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ))
    .ok()
});

pub(super) fn response(anonymous_role: Option<&str>) -> Response<Full<Bytes>> {
    let role = escaped(anonymous_role.unwrap_or_default());
    let page = PAGE.replacen(ANONYMOUS_ROLE, &role, 1);
    let mut answer = Response::new(Full::new(Bytes::from(page)));
    let mut set = |name: HeaderName, value: &'static str| {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    };
    set(header::CONTENT_TYPE, "text/html; charset=utf-8");
    set(header::CACHE_CONTROL, "no-store");
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    if let Some(policy) = &*POLICY {
        answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy.clone());
    }
    answer
}

/// As the value of an attribute.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}

/// The content between two tags as a content security policy names it.
fn hash_of(open: &str, close: &str) -> Option<String> {
    let (_, rest) = PAGE.split_once(open)?;
    let (content, _) = rest.split_once(close)?;
    let digest = ring::digest::digest(&ring::digest::SHA256, content.as_bytes());
    Some(format!("sha256-{}", STANDARD.encode(digest)))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn the_policy_admits_the_pages_own_script_and_no_evaluation() {
        let answer = response(None);

        let policy = answer.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();

        assert_eq!(policy.matches("'sha256-").count(), 2);
        assert!(!policy.contains("unsafe"));
    }

    #[tokio::test]
    async fn the_anonymous_roles_name_cannot_end_its_place() {
        let body = async |role| {
            let bytes = response(role).into_body().collect().await.unwrap().to_bytes();
            String::from_utf8(bytes.to_vec()).unwrap()
        };

        assert!(body(None).await.contains(r#" content="">"#));
        assert!(body(Some(r#"a"><b>&"#)).await.contains(r#" content="a&quot;>&lt;b>&amp;">"#));
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_keeps_its_names() {
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert_eq!(PAGE.matches("<style").count(), 1);
        assert!(!PAGE.contains(" style=\"") && !PAGE.contains(" onclick="));
        assert!(!PAGE.contains("https://"));
        assert_eq!(PAGE.matches(ANONYMOUS_ROLE).count(), 1);
        for id in ["state", "events", "filter", "check", "snippet", "token"] {
            assert!(PAGE.contains(&format!("id=\"{id}\"")), "{id}");
        }
    }
}
