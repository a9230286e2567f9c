//! `init`, `apply`, and what every command has in common: help, usage, exit codes.

mod common;

use common::{Dir, EVENT};

#[test]
fn init_makes_directory_and_file_and_does_it_twice() {
    let dir = Dir::new();
    let first = dir.json(&["init", "--example"]);
    assert_eq!(first["wrote"], true);
    assert!(dir.path().join(".trunkline").is_dir() && dir.path().join("trunkline.yaml").is_file());
    assert_eq!(std::fs::read_to_string(dir.path().join(".trunkline/.gitignore")).expect("kept out of git"), "*\n");
    let second = dir.json(&["init", "--example"]);
    assert_eq!(second["wrote"], false);
    assert!(second["changes"].as_array().expect("changes").iter().all(|change| change["action"] == "unchanged"), "{second}");
    let topic = dir.json(&["topics", "show", EVENT]);
    assert_eq!((topic["tag"].as_str(), topic["sample"]["orderId"].as_str()), (Some(EVENT), Some("123")));
}

#[test]
fn init_keeps_a_file_that_is_there() {
    let dir = Dir::new();
    let own = "product: shop\nenv: dev\nbrokers:\n  - { tag: mail, envs: [{ slug: dev, type: EMBEDDED }] }\n";
    let path = dir.write("trunkline.yaml", own);
    let (code, error) = dir.failure(&["init", "--example"]);
    assert_eq!((code, error["code"].as_str()), (4, Some("ALREADY_EXISTS")));
    assert!(error["details"]["next"].as_str().expect("a next step").contains("--force"));
    dir.ok(&["init"]);
    assert_eq!(std::fs::read_to_string(&path).expect("the file"), own);
    assert_eq!(dir.json(&["brokers", "show", "mail"])["product"], "shop");
    dir.ok(&["init", "--example", "--force"]);
    assert!(std::fs::read_to_string(&path).expect("the file").contains("order-created"));
}

#[test]
fn without_a_data_directory_init_is_named() {
    let dir = Dir::new();
    let (code, error) = dir.failure(&["consume", EVENT, "--product", "my-product", "--env", "prd"]);
    assert_eq!((code, error["code"].as_str()), (5, Some("STORE_FAILED")));
    assert!(error["details"]["next"].as_str().expect("a next step").contains("trunkline init"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("the directory").count(), 0, "it made something");
}

#[test]
fn apply_shows_what_it_changes_and_changes_it_once() {
    let dir = Dir::with_example();
    let text = std::fs::read_to_string(dir.path().join("trunkline.yaml")).expect("the file");
    let changed = text.replace("name: Order created", "name: Order placed") + "      - tag: order-paid\n";
    dir.write("trunkline.yaml", changed);
    let dry = dir.ok(&["apply", "--dry-run"]);
    assert!(dry.contains("- name: Order created") && dry.contains("+ name: Order placed") && dry.contains("dry run"), "{dry}");
    assert_eq!(dir.json(&["topics", "show", EVENT])["name"], "Order created", "a dry run writes nothing");
    let applied = dir.json(&["apply"]);
    assert_eq!(applied["changed"], 2);
    assert_eq!(dir.json(&["apply"])["changed"], 0);
    assert_eq!(dir.json(&["topics", "show", EVENT])["name"], "Order placed");

    dir.write("trunkline.yaml", text);
    assert_eq!(dir.json(&["apply"])["changed"], 1, "nothing is removed without --prune");
    assert_eq!(dir.json(&["topics", "list"]).as_array().map(Vec::len), Some(2));
    assert_eq!(dir.json(&["apply", "--prune"])["changed"], 1);
    assert_eq!(dir.json(&["topics", "list"]).as_array().map(Vec::len), Some(1));
}

#[test]
fn a_wrong_file_is_refused_whole() {
    let dir = Dir::with_example();
    dir.write("bad.yaml", "product: my-product\nbrokers:\n  - tag: fine\n    envs: [{ slug: prd, type: EMBEDDED }]\n  - tag: bad\n    envs: [{ slug: prd, type: EMBEDED }]\n");
    let (code, error) = dir.failure(&["apply", "-f", "bad.yaml"]);
    assert_eq!((code, error["code"].as_str()), (2, Some("INPUT_INVALID")), "{error}");
    assert!(error["message"].as_str().expect("a message").contains("EMBEDDED"), "{error}");
    assert_eq!(dir.json(&["brokers", "list"]).as_array().map(Vec::len), Some(1), "nothing of it was written");
    dir.write("broken.yaml", "brokers: [\n");
    assert_eq!(dir.failure(&["apply", "-f", "broken.yaml"]).0, 2);
}

#[test]
fn usage_errors_end_with_two_and_say_how() {
    let dir = Dir::new();
    let ended = dir.run(&["produce"]);
    assert_eq!(ended.code, 2);
    assert!(ended.err.starts_with("error[INPUT_INVALID]: ") && ended.err.contains("--help"), "{}", ended.err);
    let (code, error) = dir.failure(&["frobnicate"]);
    assert_eq!((code, error["code"].as_str()), (2, Some("INPUT_INVALID")));
    assert_eq!(dir.run(&["consume", EVENT, "--retry", "soon"]).code, 2);
}

#[test]
fn help_has_pages() {
    let dir = Dir::new();
    assert!(dir.ok(&["help", "exit-codes"]).contains("130  interrupted"));
    assert!(dir.ok(&["help", "exec"]).contains("TRUNKLINE_ATTEMPT"));
    assert!(dir.ok(&["help", "topics", "create"]).contains("--ordering"));
    assert!(dir.ok(&["--help"]).contains("trunkline init --example"));
    assert!(dir.ok(&["completions", "bash"]).contains("_trunkline"));
    assert_eq!(dir.run(&["help", "nothing"]).code, 2);
}

#[test]
fn v_says_which_data_directory() {
    let dir = Dir::with_example();
    let ended = dir.run(&["brokers", "list", "-v"]);
    assert!(ended.err.contains(&format!("{}", dir.path().join(".trunkline").display())), "{}", ended.err);
}
