//! Options from a file: `batch = 500` in `run.toml` is `--batch=500` on the command line.
//!
//! The file becomes arguments before anything is parsed, so a value means the same in both places and
//! is refused in the same words.

use std::{collections::BTreeMap, ffi::OsString, path::Path, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};
use toml::{Table, Value};
use vaecf_core::{Error, Result};

/// The name of the file beside a result.
pub(crate) const NAME: &str = "run.toml";

/// What concerns one call and not the result, so that it is in no file beside a result.
const OF_ONE_CALL: [&str; 12] = [
    "config",
    "output",
    "force",
    "resume",
    "data-memory",
    "devices",
    "group-timeout",
    "quiet",
    "verbose",
    "color",
    "help",
    "version",
];

/// What was typed, with what the file of `--config` adds to it.
pub(crate) fn arguments(command: &Command, mut typed: Vec<OsString>) -> Result<Vec<OsString>> {
    // What is missing or wrong here is found when all arguments are parsed.
    let Ok(matches) = command.clone().ignore_errors(true).try_get_matches_from(&typed) else { return Ok(typed) };
    let Some((name, given)) = matches.subcommand() else { return Ok(typed) };
    let (Some(path), Some(chosen)) = (given.get_one::<PathBuf>("config"), command.find_subcommand(name)) else {
        return Ok(typed);
    };
    let options = options_of(command, chosen);
    let mut added = Vec::new();
    for (key, value) in read(path)? {
        let Some(option) = options.get(key.as_str()).filter(|_| key != "config") else {
            let near = options.keys().find(|known| known.replace('-', "") == key.replace(['-', '_'], ""));
            let hint =
                near.map_or_else(|| format!("see `vaecf {name} --help`"), |near| format!("did you mean `{near}`?"));
            return Err(Error::usage(format!(
                "{}: `{key}` is not an option of `vaecf {name}`; {hint}",
                path.display()
            )));
        };
        let typed = |id: &str| given.value_source(id) == Some(ValueSource::CommandLine);
        // Several devices that were typed take the place of one in the file.
        let replaced =
            key == "device" && options.get("devices").is_some_and(|several| typed(several.get_id().as_str()));
        if !replaced && !typed(option.get_id().as_str()) {
            added.extend(argument(&key, &value, option).map_err(|e| e.context(path.display()))?);
        }
    }
    let end = typed.iter().position(|word| word == "--").unwrap_or(typed.len());
    typed.splice(end..end, added);
    Ok(typed)
}

fn read(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, &e))?;
    text.parse::<Table>().map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        Error::data(format!("{}:{line}: not TOML: {}", path.display(), e.message().trim_end().replace('\n', ", ")))
    })
}

/// The options of a command by their long names, those of every command included.
fn options_of<'a>(command: &'a Command, chosen: &'a Command) -> BTreeMap<&'a str, &'a Arg> {
    let all = command.get_arguments().filter(|arg| arg.is_global_set()).chain(chosen.get_arguments());
    all.filter_map(|arg| Some((arg.get_long()?, arg))).collect()
}

/// `--key=value`, or `--key` for a switch that is on and nothing for one that is off.
fn argument(key: &str, value: &Value, option: &Arg) -> Result<Option<OsString>> {
    let is_switch = !option.get_action().takes_values();
    match value {
        Value::Boolean(on) if is_switch => Ok(on.then(|| format!("--{key}").into())),
        _ if is_switch => Err(Error::usage(format!("`{key}` is a switch; it is true or false"))),
        Value::Array(values) => {
            let words: Result<Vec<_>> = values.iter().map(|value| word(key, value)).collect();
            Ok(Some(format!("--{key}={}", words?.join(",")).into()))
        }
        value => Ok(Some(format!("--{key}={}", word(key, value)?).into())),
    }
}

fn word(key: &str, value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Ok(value.to_string()),
        _ => Err(Error::usage(format!(
            "`{key}` is a {}; options are texts, numbers and lists of these",
            value.type_str()
        ))),
    }
}

/// The options in force, by their long names: what `run.toml` beside a result says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings(Table);

/// Every option of the chosen command, given or by default.
pub(crate) fn settings(command: &Command, matches: &ArgMatches) -> Settings {
    let Some((chosen, given)) = matches.subcommand().and_then(|(name, m)| Some((command.find_subcommand(name)?, m)))
    else {
        return Settings::default();
    };
    let mut table = Table::new();
    for (name, option) in options_of(command, chosen) {
        let id = option.get_id().as_str();
        if OF_ONE_CALL.contains(&name) || !given.ids().any(|known| known == id) {
            continue;
        }
        let value = match option.get_action() {
            ArgAction::SetTrue => Some(Value::Boolean(given.get_flag(id))),
            action => {
                let words = given.get_raw(id).into_iter().flatten().map(|raw| typed(&raw.to_string_lossy()));
                let mut words: Vec<_> = words.collect();
                if matches!(action, ArgAction::Append) { Some(Value::Array(words)) } else { words.pop() }
            }
        };
        table.extend(value.map(|value| (name.to_owned(), value)));
    }
    Settings(table)
}

/// A word as TOML would have it, without quotes where it is a number that is written so: `1e3` may be a part of a name.
fn typed(word: &str) -> Value {
    let number = || word.parse().ok().filter(|number: &f64| number.is_finite()).map(Value::Float);
    let value = word.parse().map(Value::Integer).ok().or_else(number);
    value.filter(|value| value.to_string() == word).unwrap_or_else(|| Value::String(word.to_owned()))
}

impl Settings {
    /// Sets options to what they came to be, such as those that a preset stands for: the fields of a
    /// configuration have the names of its options.
    pub(crate) fn set(&mut self, config: &impl serde::Serialize) -> Result<()> {
        let table = Table::try_from(config).map_err(|e| Error::failure(format!("{NAME}: {e}")))?;
        self.0.extend(table.into_iter().map(|(key, value)| (key.replace('_', "-"), value)));
        Ok(())
    }

    /// The text of the file.
    pub(crate) fn text(&self, command: &str) -> String {
        format!("# Options of this result; `vaecf {command} --config {NAME}` uses them again.\n{}", self.0)
    }
}
