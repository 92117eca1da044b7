//! Where this machine gets Debian packages from, read from its own apt configuration.
//!
//! The box uses the same mirror, key ring and proxy as the machine, for another Debian release.

use std::path::Path;

use anyhow::{Result, bail};

/// The release the box is made of: its Xen is the one that boots PVH guests without virtualisation extensions.
pub const SUITE: &str = "trixie";

const DEBIAN_SUITES: [&str; 12] = [
    "stable",
    "testing",
    "unstable",
    "oldstable",
    "sid",
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "experimental",
];

/// One apt source: a mirror, what is taken from it, and whose signature counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    pub uri: String,
    pub suites: Vec<String>,
    pub components: Vec<String>,
    /// A key ring's path, or a whole key in text form.
    pub signed_by: Option<String>,
}

impl Source {
    fn is_debian(&self) -> bool {
        let known = |suite: &String| {
            let base = suite.split(['-', '/']).next().unwrap_or(suite);
            DEBIAN_SUITES.contains(&base)
        };
        self.components.iter().any(|component| component == "main") && self.suites.iter().all(known)
    }

    fn is_security(&self) -> bool {
        self.suites.iter().any(|suite| suite.ends_with("-security") || suite.ends_with("/updates"))
    }
}

/// The classic format: `deb [options] URI suite component…`, one line each.
pub fn parse_list(text: &str) -> Vec<Source> {
    let line = |line: &str| {
        let mut rest = line.split('#').next()?.trim().strip_prefix("deb ")?.trim();
        let mut signed_by = None;
        if let Some(options) = rest.strip_prefix('[') {
            let (options, tail) = options.split_once(']')?;
            signed_by = options
                .split_whitespace()
                .find_map(|option| option.strip_prefix("signed-by="))
                .map(String::from);
            rest = tail;
        }
        let mut words = rest.split_whitespace().map(String::from);
        Some(Source {
            uri: words.next()?,
            suites: vec![words.next()?],
            components: words.collect(),
            signed_by,
        })
    };
    text.lines().filter_map(line).collect()
}

/// The deb822 format: stanzas of `Field: value`, with continuation lines.
pub fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in text.replace("\r\n", "\n").split("\n\n") {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in stanza.lines().filter(|line| !line.starts_with('#')) {
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = fields.last_mut() {
                    let line = line.trim();
                    value.push('\n');
                    value.push_str(if line == "." { "" } else { line });
                }
            } else if let Some((field, value)) = line.split_once(':') {
                fields.push((field.to_ascii_lowercase(), value.trim().to_string()));
            }
        }
        let field =
            |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str());
        let words = |name: &str| -> Vec<String> {
            field(name).unwrap_or_default().split_whitespace().map(String::from).collect()
        };
        let off = matches!(field("enabled"), Some("no" | "false" | "0" | "off"));
        if off || !words("types").iter().any(|kind| kind == "deb") {
            continue;
        }
        for uri in words("uris") {
            sources.push(Source {
                uri,
                suites: words("suites"),
                components: words("components"),
                signed_by: field("signed-by").map(|value| value.trim().to_string()),
            });
        }
    }
    sources
}

/// Every source this machine's apt knows.
pub fn of_machine(etc_apt: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(entries) = std::fs::read_dir(etc_apt.join("sources.list.d")) {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(parse_list(&text)),
            Some("sources") => sources.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    sources
}

/// The sources of the box: the machine's Debian mirror (and its security mirror, if it has one), with our suite.
pub fn for_box(machine: &[Source]) -> Result<Vec<Source>> {
    let usable = |source: &&Source| source.is_debian() && !source.uri.starts_with("cdrom:");
    let Some(main) = machine.iter().filter(usable).find(|source| !source.is_security()) else {
        bail!(
            "no Debian archive in /etc/apt/sources.list or /etc/apt/sources.list.d: the box is made of Debian \
             packages. Add one there, or name one: XENPVH_BOX_MIRROR=http://mirror.example/debian"
        );
    };
    let components = vec!["main".to_string()];
    let suites = vec![SUITE.to_string(), format!("{SUITE}-updates")];
    let mut sources = vec![Source { suites, components: components.clone(), ..main.clone() }];
    if let Some(security) = machine.iter().filter(usable).find(|source| source.is_security()) {
        let suites = vec![format!("{SUITE}-security")];
        sources.push(Source { suites, components, ..security.clone() });
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# comment\n\
        deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib # tail\n\
        deb-src http://mirror.example/debian bookworm main\n\
        deb http://other.example/repo stable-thing main\n\
        deb http://mirror.example/security bookworm-security main\n";

    #[test]
    fn list_format() {
        let sources = parse_list(LIST);
        assert_eq!(sources.len(), 3);
        assert_eq!(sources[0].uri, "http://mirror.example/debian");
        assert_eq!(sources[0].signed_by.as_deref(), Some("/k.gpg"));
        assert_eq!(sources[0].components, ["main", "contrib"]);
    }

    #[test]
    fn deb822_format_with_an_inline_key() {
        let text = "Types: deb deb-src\nURIs: http://mirror.example/debian\nSuites: trixie\n trixie-updates\n\
            Components: main\nSigned-By:\n -----BEGIN\n .\n abc\n -----END\n\nTypes: deb\nEnabled: no\n\
            URIs: http://x.example\nSuites: sid\nComponents: main\n";
        let sources = parse_deb822(text);
        assert_eq!(sources.len(), 1);
        assert_eq!(sources[0].suites, ["trixie", "trixie-updates"]);
        assert_eq!(sources[0].signed_by.as_deref(), Some("-----BEGIN\n\nabc\n-----END"));
    }

    #[test]
    fn the_box_takes_the_same_mirrors() {
        let sources = for_box(&parse_list(LIST)).unwrap();
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].suites, ["trixie", "trixie-updates"]);
        assert_eq!(sources[1].uri, "http://mirror.example/security");
        assert_eq!(sources[1].suites, ["trixie-security"]);
    }

    #[test]
    fn no_debian_is_an_error_that_says_what_to_do() {
        let foreign = parse_list("deb http://mirror.example/ubuntu noble main\n");
        assert!(for_box(&foreign).unwrap_err().to_string().contains("XENPVH_BOX_MIRROR"));
    }
}
