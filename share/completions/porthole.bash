# bash completion for porthole; written by: porthole completion bash
_porthole_peers() {
  porthole node status --json --statedir "$1" 2>/dev/null | grep -o '"name":"[^"]*"' | cut -d'"' -f4
}

_porthole() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} where=porthole statedir= words= peers= i
  for ((i = 1; i < COMP_CWORD; i++)); do
    if [[ ${COMP_WORDS[i]} == --statedir ]]; then
      statedir=${COMP_WORDS[i+1]}
      [[ $statedir == "=" ]] && statedir=${COMP_WORDS[i+2]}
    fi
    case "$where ${COMP_WORDS[i]}" in
      'porthole node'|'porthole node run'|'porthole node status'|'porthole node ping'|'porthole node nc'|'porthole node whois'|'porthole node ip'|'porthole node netcheck'|'porthole node logout'|'porthole node doctor'|'porthole remote'|'porthole remote run'|'porthole remote account'|'porthole remote account create'|'porthole remote account token'|'porthole remote account list'|'porthole remote key'|'porthole remote key create'|'porthole remote devices'|'porthole remote devices list'|'porthole remote devices revoke'|'porthole remote register'|'porthole remote register approve'|'porthole serve'|'porthole serve set-password'|'porthole serve status'|'porthole serve rescan'|'porthole serve lan'|'porthole serve lan on'|'porthole serve lan off'|'porthole client'|'porthole client login'|'porthole client servers'|'porthole client connect'|'porthole client ls'|'porthole client play'|'porthole client get'|'porthole client remove'|'porthole completion') where="$where ${COMP_WORDS[i]}" ;;
    esac
  done
  [[ $prev == "=" ]] && prev=${COMP_WORDS[COMP_CWORD-2]}
  [[ $cur == "=" ]] && cur=
  case "$prev" in
    --account|--account-token|--auth-key|--base-domain|--ca-file|--count|--device|--engine|--expires|--expose|--headscale-api-key|--headscale-public-url|--headscale-url|--hostname|--library|--listen|--login-server|--name|--output|--password-file|--port|--public-url|--range|--remote|--socks5|--statedir|--stun-port|--timeout|--tls-cert|--tls-key|-c) COMPREPLY=($(compgen -f -- "$cur")); compopt -o filenames; return ;;
  esac
  case "$where" in
    'porthole') words='node remote serve client completion -h --help --version' ;;
    'porthole node') words='run status ping nc whois ip netcheck logout doctor -h --help' ;;
    'porthole node run') words='-h --help --statedir --login-server --auth-key --hostname --ephemeral --ca-file --socks5 --expose --port --relay-only --json' ;;
    'porthole node status') words='-h --help --statedir --json --peers --active' ;;
    'porthole node ping') words='-h --help --statedir --json -c --count --until-direct --timeout --tsmp --icmp' peers=yes ;;
    'porthole node nc') words='-h --help --statedir --timeout' peers=yes ;;
    'porthole node whois') words='-h --help --statedir --json' ;;
    'porthole node ip') words='-h --help --statedir --json -4 -6 -1' peers=yes ;;
    'porthole node netcheck') words='-h --help --statedir --json' ;;
    'porthole node logout') words='-h --help --statedir --json' ;;
    'porthole node doctor') words='-h --help --ca-file --timeout --stun-port --json' ;;
    'porthole remote') words='run account key devices register -h --help' ;;
    'porthole remote run') words='-h --help --statedir --listen --tls-cert --tls-key --public-url --stun-port --base-domain --engine --headscale-url --headscale-public-url --headscale-api-key --ca-file --json' ;;
    'porthole remote account') words='create token list -h --help' ;;
    'porthole remote account create') words='-h --help --statedir --json' ;;
    'porthole remote account token') words='-h --help --statedir --json' ;;
    'porthole remote account list') words='-h --help --statedir --json' ;;
    'porthole remote key') words='create -h --help' ;;
    'porthole remote key create') words='-h --help --account --device --reusable --ephemeral --expires --statedir --json' ;;
    'porthole remote devices') words='list revoke -h --help' ;;
    'porthole remote devices list') words='-h --help --account --statedir --json' ;;
    'porthole remote devices revoke') words='-h --help --account --statedir --json' ;;
    'porthole remote register') words='approve -h --help' ;;
    'porthole remote register approve') words='-h --help --account --statedir --json' ;;
    'porthole serve') words='set-password status rescan lan -h --help --statedir --library --listen --remote --account-token --name --relay-only --ca-file --json' ;;
    'porthole serve set-password') words='-h --help --statedir --password-file' ;;
    'porthole serve status') words='-h --help --statedir --json' ;;
    'porthole serve rescan') words='-h --help --statedir --json' ;;
    'porthole serve lan') words='on off -h --help' ;;
    'porthole serve lan on') words='-h --help --statedir --json' ;;
    'porthole serve lan off') words='-h --help --statedir --json' ;;
    'porthole client') words='login servers connect ls play get remove -h --help' ;;
    'porthole client login') words='-h --help --statedir --ca-file --relay-only --json --password-file --name --no-wait' ;;
    'porthole client servers') words='-h --help --statedir --ca-file --relay-only --json' ;;
    'porthole client connect') words='-h --help --statedir --ca-file --relay-only --json --name --auto --local --remote' ;;
    'porthole client ls') words='-h --help --statedir --ca-file --relay-only --json --name --auto --local --remote' ;;
    'porthole client play') words='-h --help --statedir --ca-file --relay-only --json --name --auto --local --remote --listen' ;;
    'porthole client get') words='-h --help --statedir --ca-file --relay-only --json --name --auto --local --remote --output --range' ;;
    'porthole client remove') words='-h --help --statedir --ca-file --relay-only --json' ;;
    'porthole completion') words='-h --help' ;;
  esac
  [[ -n $peers && -n $statedir && $cur != -* ]] && words+=" $(_porthole_peers "${statedir/#\~/$HOME}")"
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _porthole porthole
