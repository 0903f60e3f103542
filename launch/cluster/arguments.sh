# Sourced by the starters of clusters: options are written --name=value, and every mistake is one clear line.
# shellcheck shell=bash
# Nothing here is newer than bash 3.2, which is what macOS has.

refuse() {
  echo "error: $*" >&2
  exit 2
}

# What the command after `--` is; parse_options fills it.
COMMAND=()

# parse_options "NAMES" ARGUMENTS...: sets the variable of every option that is given, `-` in its name become `_`.
# NAMES are separated by spaces; one that ends in `=` takes a value, another one is a switch and becomes `true`.
parse_options() {
  local accepted=" $1 " given key setting # no option may have one of these names
  shift
  while (($#)); do
    given="$1"
    shift
    case "$given" in
      --)
        COMMAND=("$@")
        return
        ;;
      --*) ;;
      *) refuse "what is '$given'? options are written --name=value, the command to run stands after --; --help lists them" ;;
    esac
    key="${given%%=*}"
    key="${key#--}"
    key="${key//_/-}"
    setting="${given#*=}"
    if [[ "$accepted" == *" $key= "* ]]; then
      [[ "$given" == *=?* ]] || refuse "--$key needs a value: --$key=VALUE"
    elif [[ "$accepted" == *" $key "* ]]; then
      [[ "$given" != *=* ]] || refuse "--$key takes no value"
      setting=true
    else
      refuse "unknown option '--$key'; --help lists them"
    fi
    printf -v "${key//-/_}" %s "$setting"
  done
}

# check_option NAME VALUE PATTERN WHAT: refuses a value that the extended regular expression does not match.
check_option() {
  [[ -n "$2" ]] || refuse "--$1 is missing: $4"
  [[ "$2" =~ ^($3)$ ]] || refuse "--$1=$2: $4"
}

# Numbers begin with no 0: bash would read 010 as 8, and 08 not at all.
check_count() {
  check_option "$1" "$2" '[1-9][0-9]{0,4}' "give a whole number above 0"
}

check_number() {
  check_option "$1" "$2" '0|[1-9][0-9]{0,4}' "give a whole number"
}

# Words as a shell would read them back, on one line.
quoted() {
  local word before line="" escaped="'\\''"
  for word in "$@"; do
    before=""
    if [[ ! "$word" =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      [[ ! "$word" =~ ^--[a-z-]+= ]] || before="${BASH_REMATCH[0]}"
      word="${word#"$before"}"
      word="$before'${word//\'/$escaped}'"
    fi
    line+=" $word"
  done
  echo "${line# }"
}

# run COMMAND...: runs it, or prints it under --dry-run.
run() {
  if "${dry_run:-false}"; then
    quoted "$@"
  else
    "$@"
  fi
}

check_command() {
  ((${#COMMAND[@]})) || refuse "no command given: put it last, as in -- python -m launch.train --config=configs/X.py --workdir=W"
  case "${COMMAND[0]}" in
    -*) refuse "the command after -- begins with '${COMMAND[0]}': begin it with a program, as in -- python -m launch.train ${COMMAND[0]}" ;;
  esac
}
