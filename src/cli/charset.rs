//! What is printed where the terminal's locale is not UTF-8: the few letters beyond ASCII that the verbs use are replaced
//! by one ASCII letter each, so that columns stay where they are.

use std::borrow::Cow;
use std::sync::OnceLock;

/// The variables that say which letters a terminal shows; the first that is set decides.
const LOCALE: [&str; 3] = ["LC_ALL", "LC_CTYPE", "LANG"];

/// The text as this terminal can show it.
#[must_use]
pub fn fit(text: &str) -> Cow<'_, str> {
    if is_unicode() { Cow::Borrowed(text) } else { ascii(text) }
}

/// False where a locale is named that is not UTF-8. Without any name it is taken for UTF-8, as in most containers.
#[must_use]
pub fn is_unicode() -> bool {
    static UNICODE: OnceLock<bool> = OnceLock::new();
    *UNICODE.get_or_init(|| {
        let named = LOCALE.iter().filter_map(std::env::var_os).find(|value| !value.is_empty());
        named.is_none_or(|name| is_utf8(&name.to_string_lossy()))
    })
}

fn is_utf8(locale: &str) -> bool {
    let lower = locale.to_ascii_lowercase();
    lower.ends_with("utf-8") || lower.ends_with("utf8") || lower.contains("utf-8@") || lower.contains("utf8@")
}

fn ascii(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return Cow::Borrowed(text);
    }
    let replaced = text.chars().map(|letter| match letter {
        letter if letter.is_ascii() => letter,
        '→' | '▶' => '>',
        '·' => '|',
        '•' => '*',
        '…' => '~',
        '─' => '-',
        '×' => 'x',
        '↑' => '^',
        '↓' => 'v',
        _ => '?',
    });
    Cow::Owned(replaced.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_locale_decides_by_its_letters() {
        for locale in ["C.UTF-8", "en_US.utf8", "de_DE.UTF-8@euro"] {
            assert!(is_utf8(locale), "{locale}");
        }
        for locale in ["C", "POSIX", "de_DE.ISO-8859-1", "en_US"] {
            assert!(!is_utf8(locale), "{locale}");
        }
    }

    #[test]
    fn every_letter_is_replaced_by_one() {
        let text = "▶ h:1 · leads → h:2 … ── •";
        assert_eq!(ascii(text), "> h:1 | leads > h:2 ~ -- *");
        assert_eq!(ascii(text).len(), text.chars().count());
        assert!(matches!(ascii("plain"), Cow::Borrowed(_)));
    }
}
