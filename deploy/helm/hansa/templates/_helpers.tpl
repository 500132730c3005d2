{{- define "hansa.name" -}}{{ printf "%s-hansa" .Release.Name | trunc 52 | trimSuffix "-" }}{{- end -}}

{{- define "hansa.labels" -}}
app.kubernetes.io/name: hansa
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .Values.role }}
{{- end -}}

{{- define "hansa.tokenSecret" -}}{{ .Values.tokenSecret | default (printf "%s-token" (include "hansa.name" .)) }}{{- end -}}

{{- define "hansa.check" -}}
{{- if not (has .Values.role (list "server" "relay" "client")) }}{{ fail (printf "role: %q is none of server, relay, client" .Values.role) }}{{ end }}
{{- if and (ne .Values.role "server") (not .Values.server) }}{{ fail "server: say where it is, as host:port" }}{{ end }}
{{- if and (ne .Values.role "server") (not .Values.token) (not .Values.tokenSecret) }}{{ fail "token: give one, or tokenSecret" }}{{ end }}
{{- if and (eq .Values.role "client") (not .Values.data) }}{{ fail "data: give the TOML file that says where the rows are" }}{{ end }}
{{- if gt (int .Values.replicas) 1 }}
{{- if ne .Values.role "server" }}{{ fail "replicas: only servers can be several of one release" }}{{ end }}
{{- if not (and .Values.databaseSecret .Values.blobs .Values.authoritySecret) }}{{ fail "replicas: servers share databaseSecret, blobs and authoritySecret" }}{{ end }}
{{- end }}
{{- end -}}
